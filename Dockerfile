# Two images: `node` runs weft, `bench` measures.  docker-compose.yml builds both.
#
# BASE has CPython 3.11 to 3.13 with venv; programs it lacks are installed with apt.  RUST compiles the native
# engine; without cargo in it that is left out.  Where there is no registry, bench/compose/prepare makes a BASE
# from Debian packages and puts wheels into bench/compose/wheels: then nothing here needs a network.
#
# Neither BuildKit nor the classic builder is asked for anything the other lacks: docker-compose 1.29 drives
# the latter, which builds every stage above the one it is asked for.

ARG BASE=python:3.13-slim
ARG RUST=rust:1-slim-bookworm

FROM ${RUST} AS native
COPY tunnel/native /src
RUN mkdir /out; \
    if ! command -v cargo >/dev/null; then \
        echo "left out: the native engine, unless a wheel brings it: no cargo in this image"; \
    else \
        cargo build --quiet --release --manifest-path /src/Cargo.toml --target-dir /build && \
        for built in /build/release/lib_native.so; do \
            if [ -e "$built" ]; then cp "$built" /out/_native.abi3.so; fi; \
        done; \
    fi

# What others wrote comes first: the layers stay when only weft's own source has changed.
FROM ${BASE} AS dependencies
COPY bench/compose/install /usr/local/bin/install-weft
COPY bench/compose/wheels /wheels
COPY requirements/runtime.txt /src/requirements/
RUN python3 -m venv /opt/weft && install-weft requirements /src/requirements/runtime.txt

FROM dependencies AS bench-dependencies
COPY requirements/bench.txt /src/requirements/
RUN install-weft requirements /src/requirements/bench.txt

FROM ${BASE} AS source
COPY pyproject.toml README.md LICENSE /src/
COPY overlay /src/overlay
COPY tunnel /src/tunnel
COPY control /src/control
COPY bench /src/bench
COPY bench/compose/wheel /wheel
COPY --from=native /out /native

FROM dependencies AS node-builder
COPY --from=source /src /src
COPY --from=source /native /native
COPY --from=source /wheel /wheel
RUN install-weft weft /src /native && install-weft slim

FROM bench-dependencies AS bench-builder
COPY --from=source /src /src
COPY --from=source /native /native
COPY --from=source /wheel /wheel
RUN install-weft weft /src /native && install-weft slim

# ip and ping for people; the rest is what a bench uses.
FROM ${BASE} AS programs
RUN if ! { command -v ip && command -v ping && command -v iperf3 && command -v ethtool && command -v ps; } \
        >/dev/null; then \
        apt-get update && \
        apt-get install --yes --no-install-recommends iproute2 iputils-ping iperf3 ethtool procps fastd && \
        rm -rf /var/lib/apt/lists/*; \
    fi
# Debian's ping asks for CAP_NET_RAW and does not start without; a copy has lost that wish and needs none.
RUN cp "$(command -v ping)" /usr/local/bin/ping
ENV PATH="/opt/weft/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" PYTHONUNBUFFERED=1

FROM programs AS bench
COPY --from=bench-builder /opt/weft /opt/weft
CMD ["weft", "bench", "--help"]

FROM programs AS node
COPY --from=node-builder /opt/weft /opt/weft
CMD ["weft", "run"]
