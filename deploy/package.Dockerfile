# The image from a package that is there already, in seconds:
#   scripts/package.sh && docker build -t opi-spdk -f deploy/package.Dockerfile target/package
# The package is mounted, not copied: a copied one would stay in a layer. An engine before Docker 23 needs DOCKER_BUILDKIT=1
# for that.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN --mount=type=bind,target=/package apt-get update \
    && apt-get install -y --no-install-recommends /package/opi-spdk_*.deb pci.ids \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
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
