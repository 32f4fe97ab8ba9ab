# Tells the peer what to export: a script and curl.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl \
    && rm -rf /var/lib/apt/lists/*
COPY exports.sh /usr/local/bin/exports
USER nobody
ENTRYPOINT ["exports"]
