"""Users who keep asking a service for captions; run by Locust against `ddcap serve`.

    ddcap serve --queue 64 &
    locust -f benchmarks/load.py --headless --users 50 --spawn-rate 10 --run-time 2m --host http://127.0.0.1:8000

A user who is told to come again later (429) waits as long as it was told; all else but 200 is a failure.
"""

from pathlib import Path

from locust import HttpUser, constant, task

PHOTOS = sorted((Path(__file__).parents[1] / "examples").rglob("*.jpg"))
CONTENTS = [photo.read_bytes() for photo in PHOTOS]


class Reader(HttpUser):
    """Asks for a caption, reads it for a second, and asks again."""

    wait_time = constant(1)
    asked = 0

    @task
    def caption(self) -> None:
        """One photograph."""
        content = CONTENTS[self.asked % len(CONTENTS)]
        self.asked += 1
        files = {"images": ("photo.jpg", content, "image/jpeg")}
        with self.client.post("/v1/captions", files=files, catch_response=True) as answer:
            if answer.status_code == 429:
                self.environment.events.request.fire(
                    request_type="wait",
                    name="429",
                    response_time=0,
                    response_length=0,
                    exception=None,
                    context={},
                )
                answer.success()
                self._sleep(int(answer.headers["Retry-After"]))
            elif answer.status_code != 200 or not answer.json()["results"][0].get("caption"):
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
