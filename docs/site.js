// Tables and charts that are wider than the page scroll in themselves. Here they say so, and the keyboard reaches them.

const WIDE = ".md-typeset__scrollwrap, p:has(> img[src*='images/'])";
const HINT = "Scroll sideways for more →";

function watch(box) {
  const hint = document.createElement("p");
  hint.className = "scroll-hint";
  hint.textContent = HINT;
  hint.ariaHidden = "true";
  hint.hidden = true;
  box.before(hint);
  const look = () => {
    const isWide = box.scrollWidth > box.clientWidth + 1;
    hint.hidden = !isWide;
    hint.style.display = isWide ? "" : "none";
    box.classList.toggle("more", isWide && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    if (isWide) Object.assign(box, { tabIndex: 0, role: "region", ariaLabel: "Scrolls sideways" });
    else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  };
  box.classList.add("scrolls");
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
  for (const image of box.querySelectorAll("img")) image.addEventListener("load", look);
  look();
}

// the theme wraps tables when it starts
addEventListener("load", () => setTimeout(() => document.querySelectorAll(WIDE).forEach(watch)));
