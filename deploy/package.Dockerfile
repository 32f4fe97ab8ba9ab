# The image from a package that is there already, in seconds:
#   scripts/package.sh && docker build -t opi-spdk -f deploy/package.Dockerfile target/package
ARG BASE=debian:bookworm-slim
FROM ${BASE}
COPY opi-spdk_*.deb /tmp/
RUN apt-get update \
    && apt-get install -y --no-install-recommends /tmp/opi-spdk_*.deb pci.ids \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /tmp/*.deb
# As in Dockerfile.
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="opi-spdk" \
      org.opencontainers.image.description="Storage target: SPDK's data path under the OPI storage API" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
ENV OPI_SPDK_GRPC_ADDR=0.0.0.0:50051 OPI_SPDK_HTTP_ADDR=0.0.0.0:8082
EXPOSE 50051 8082
VOLUME /var/lib/opi-spdk
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["opi-spdk", "health"]
ENTRYPOINT ["opi-spdk"]
