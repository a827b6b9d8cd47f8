# valkyrie-server and nothing else: `docker build -t valkyrie-server .`, then
# `docker run --read-only --cap-drop ALL -p 8080:8080 valkyrie-server`. docs/operations.md says how to configure it.
FROM rust:1.95-slim AS build
WORKDIR /source
COPY . .
RUN target="$(uname -m)-unknown-linux-gnu" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile dist --package valkyrie-server --target "$target" \
    && cp "target/$target/dist/valkyrie-server" /valkyrie-server

FROM scratch
COPY --from=build /valkyrie-server /valkyrie-server
# Nobody: there is no /etc/passwd to name anybody.
USER 65532:65532
EXPOSE 8080
# The container's own address only; to scrape it from outside say --admin 0.0.0.0:9090 --admin-open true.
HEALTHCHECK --interval=10s --timeout=5s CMD ["/valkyrie-server", "probe", "127.0.0.1:9090"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/valkyrie-server"]
CMD ["start", "--bind", "0.0.0.0:8080", "--admin", "127.0.0.1:9090"]
