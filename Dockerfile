# CPU:  docker build -t srr-stream .
# CUDA: docker build -t srr-stream:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# Run:  docker run --read-only --tmpfs /tmp -v ./config.yaml:/etc/srr-stream/config.yaml:ro -v models:/var/lib/srr-stream srr-stream

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=confluent,gcs,images,otel,parquet,plots,s3
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/srr-stream
ENV PATH=/opt/srr-stream/bin:$PATH
# torch first and alone: the largest part, and the only one that does not come from PyPI.
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch
COPY pyproject.toml README.md ./
COPY consumers consumers
COPY models models
COPY srr_stream srr_stream
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="srr-stream" \
      org.opencontainers.image.description="Anomaly detection on contaminated, unlabelled Kafka streams" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin srr-stream \
    && install -d -o 10001 -g 10001 /var/lib/srr-stream
COPY --from=build /opt/srr-stream /opt/srr-stream
# The port whose /livez decides on health; 9109 for a container that runs `train`.
ENV PATH=/opt/srr-stream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HEALTH_PORT=9108
USER 10001:10001
# Registry and api.state_dir, if they have no full path, lie here; nothing else is written but /tmp.
WORKDIR /var/lib/srr-stream
VOLUME /var/lib/srr-stream
EXPOSE 9108 9109 9110
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['HEALTH_PORT'] + '/livez', timeout=4)"]
ENTRYPOINT ["srr-stream"]
CMD ["run", "-c", "/etc/srr-stream/config.yaml"]
