# The service on a CPU, as a user without rights; tests/serve/test_dockerfile.py runs its steps without a container.
#
#   docker build -t ddcap .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 ddcap
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v ./keys.txt:/keys.txt:ro ddcap --keys /keys.txt
FROM python:3.12-slim
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt ".[serve]" && rm -rf /build
RUN useradd --system --uid 10001 ddcap
USER ddcap
WORKDIR /tmp
ENV PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=3s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["ddcap", "serve", "--host", "0.0.0.0"]
