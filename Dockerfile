# docker build -t opi-spdk .
#
# The image holds the program, the libraries that it links, sbom.json of what is in it and THIRD-PARTY with their licences.
# Which capabilities and devices it needs for what: docs/operations.md. For NVMe/TCP alone:
#   docker run -d --name opi-spdk --network host --cap-drop ALL --security-opt no-new-privileges --read-only \
#       --tmpfs /run --tmpfs /tmp -v /var/tmp:/var/tmp --log-opt max-size=10m --log-opt max-file=3 \
#       -e OPI_SPDK_GRPC_ADDR= -e OPI_SPDK_HTTP_ADDR= -v opi-spdk:/var/lib/opi-spdk opi-spdk --no-huge
# The empty variables keep the API on 127.0.0.1: with the host's network those below would open it to all, without TLS.

# A tag can come to name another image, a digest cannot; none is given here, as it would have to follow every security update.
# Where builds are to be repeatable: --build-arg BASE=debian@sha256:..., RUST too.
ARG BASE=debian:bookworm-slim
ARG RUST=rust:1.91-bookworm

FROM ${RUST} AS build
# The processors that the image is for, as gcc names them; without it those of scripts/release-arch.sh. "native" would mean
# only those like the one that builds it.
ARG SPDK_ARCH=
# lto: with link-time optimization of SPDK.
ARG SPDK_OPTIMIZE=none
ENV OPI_SPDK_CACHE=/opt/opi-spdk
WORKDIR /src
COPY scripts scripts
COPY spdk/changes spdk/changes
RUN arch=$(scripts/release-arch.sh) && SPDK_ARCH=$arch scripts/setup.sh && echo "export SPDK_ARCH=$arch" >/opt/arch
COPY . .
RUN . /opt/arch && scripts/build-release.sh && eval "$(scripts/env.sh)" \
    && strip -o /opt/program target/release/opi-spdk && scripts/sbom.sh >/opt/sbom.json \
    && scripts/sbom.sh --notices >/opt/THIRD-PARTY

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ibverbs-providers kmod libaio1 libibverbs1 libjson-c5 libnuma1 librdmacm1 libssl3 libuuid1 openssl \
        pci.ids \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /opt/program /usr/local/bin/opi-spdk
COPY --from=build /opt/sbom.json /opt/THIRD-PARTY /usr/share/opi-spdk/
# --build-arg REVISION="$(git rev-parse HEAD)": the build does not see the repository's history.
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="opi-spdk" \
      org.opencontainers.image.description="Storage target: SPDK's data path under the OPI storage API" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
# Settings as variables, so that the health check sees them too.
ENV OPI_SPDK_GRPC_ADDR=0.0.0.0:50051 OPI_SPDK_HTTP_ADDR=0.0.0.0:8082
EXPOSE 50051 8082
VOLUME /var/lib/opi-spdk
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["opi-spdk", "health"]
ENTRYPOINT ["opi-spdk"]
