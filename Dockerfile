# docker build -t opi-spdk .
#
# The image holds the program, the libraries that it links, and sbom.json of what is in it. Which capabilities
# and devices it needs for what: docs/operations.md. For NVMe/TCP alone:
#   docker run --network host -v opi-spdk:/var/lib/opi-spdk opi-spdk --no-huge

FROM rust:1.91-bookworm AS build
# The processors that the image is for, in gcc's words; without it x86-64-v3 (AVX2), or armv8.2-a on ARM (the cores
# of BlueField-3 and newer). "native" would mean only those like the one that builds it.
ARG SPDK_ARCH=
ENV OPI_SPDK_CACHE=/opt/opi-spdk
WORKDIR /src
COPY scripts scripts
COPY spdk/changes spdk/changes
RUN case ${SPDK_ARCH:-$(dpkg --print-architecture)} in \
        amd64) arch=x86-64-v3 ;; \
        arm64) arch=armv8.2-a+crypto ;; \
        *) arch=$SPDK_ARCH ;; \
    esac \
    && SPDK_ARCH=$arch scripts/setup.sh && echo "export SPDK_ARCH=$arch" >/opt/arch
COPY . .
RUN . /opt/arch && eval "$(scripts/env.sh)" && cargo build --release --locked \
    && strip -o /opt/program target/release/opi-spdk && scripts/sbom.sh >/opt/sbom.json

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="opi-spdk" \
      org.opencontainers.image.description="Storage target: SPDK's data path under the OPI storage API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="debian:bookworm-slim"
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ibverbs-providers kmod libaio1 libibverbs1 libjson-c5 libnuma1 librdmacm1 libssl3 libuuid1 openssl \
        pci.ids \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /opt/program /usr/local/bin/opi-spdk
COPY --from=build /opt/sbom.json /usr/share/opi-spdk/sbom.json
# Settings as variables, so that the health check sees them too.
ENV OPI_SPDK_GRPC_ADDR=0.0.0.0:50051 OPI_SPDK_HTTP_ADDR=0.0.0.0:8082
EXPOSE 50051 8082
VOLUME /var/lib/opi-spdk
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["opi-spdk", "health"]
ENTRYPOINT ["opi-spdk"]
