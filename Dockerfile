# docker build -t opi-spdk .
#
# The image holds the program alone. SPDK needs hugepages, and vhost-user and vfio-user sockets must be
# where QEMU finds them:
#   docker run --privileged --network host -v /dev/hugepages:/dev/hugepages -v /run/opi-spdk:/run/opi-spdk opi-spdk

FROM rust:1-bookworm AS build
# The processors that the image is for, in gcc's words; the default has AVX2. "native" would mean only
# those like the one that builds it.
ARG SPDK_ARCH=x86-64-v3
ENV SPDK_ARCH=$SPDK_ARCH OPI_SPDK_CACHE=/opt/opi-spdk
WORKDIR /src
COPY scripts scripts
RUN scripts/setup.sh
COPY . .
RUN eval "$(scripts/env.sh)" && cargo build --release --locked

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ibverbs-providers libaio1 libibverbs1 libjson-c5 libkeyutils1 libnuma1 librdmacm1 libssl3 \
        liburing2 libuuid1 openssl pci.ids \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/opi-spdk /usr/local/bin/
EXPOSE 50051 8082
ENTRYPOINT ["opi-spdk"]
CMD ["--grpc-addr", "0.0.0.0:50051", "--http-addr", "0.0.0.0:8082"]
