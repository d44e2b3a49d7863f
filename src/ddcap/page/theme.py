"""The page's colours and type, for Gradio's own parts; those of ours are in page.css, by the same hue."""

from __future__ import annotations

import gradio as gr


def page_theme() -> gr.Theme:
    """Fonts of the machine, so that none is loaded; contrasts of at least 4.5 to 1, light and dark."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    both = {
        "block_border_width": "1px",
        "block_label_text_weight": "600",
        "block_title_text_weight": "600",
        "block_radius": "12px",
        "input_border_width": "1px",
        "input_radius": "8px",
        "button_large_radius": "8px",
    }
    light = {
        "block_background_fill": "#f6f9f8",
        "block_border_color": "#c4d0cd",
        "block_title_text_color": "#17211f",
        "block_info_text_color": "#51605d",
        "body_text_color": "#17211f",
        "body_text_color_subdued": "#51605d",
        "input_background_fill": "#ffffff",
        "input_border_color": "#7d8b88",
        "input_placeholder_color": "#5b6a67",
        "slider_color": "#0f6f66",
        "button_primary_background_fill": "#0f6f66",
        "button_primary_background_fill_hover": "#0b5750",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "#ffffff",
        "button_secondary_text_color": "#0f6f66",
        "button_secondary_border_color": "#0f6f66",
    }
    dark = {
        "body_background_fill": "#111817",
        "block_background_fill": "#182120",
        "block_border_color": "#3d4d4a",
        "block_title_text_color": "#eef4f2",
        "block_info_text_color": "#a9b8b4",
        "body_text_color": "#eef4f2",
        "body_text_color_subdued": "#a9b8b4",
        "input_background_fill": "#111817",
        "input_border_color": "#6b7d79",
        "input_placeholder_color": "#8fa09c",
        "slider_color": "#63cfc1",
        "button_primary_background_fill": "#63cfc1",
        "button_primary_background_fill_hover": "#86ded3",
        "button_primary_text_color": "#062420",
        "button_secondary_background_fill": "#111817",
        "button_secondary_text_color": "#63cfc1",
        "button_secondary_border_color": "#63cfc1",
    }
    return theme.set(**both, **light, **{f"{name}_dark": value for name, value in dark.items()})
