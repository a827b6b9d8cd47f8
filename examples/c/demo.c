/* The main job, a line per thing done. After "ready" it waits for the server to stop. Usage: demo endpoint file... */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <valkyrie.h>

enum { IN_FLIGHT = 1000, CHUNK = 64 * 1024 };

static void check(valkyrie_code code, valkyrie_error *error) {
    if (code == VALKYRIE_CODE_OK) return;
    fprintf(stderr, "%s: %s\n", valkyrie_code_name(code), valkyrie_error_message(error));
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static valkyrie_bytes text(const char *words) {
    valkyrie_bytes bytes = {(const uint8_t *)words, strlen(words)};
    return bytes;
}

static bool is(const valkyrie_message *message, const char *words) {
    valkyrie_bytes bytes = valkyrie_message_bytes(message);
    return message != NULL && bytes.len == strlen(words) && memcmp(bytes.data, words, bytes.len) == 0;
}

static valkyrie_call *open_echo(const valkyrie_client *client, const valkyrie_call_options *options) {
    valkyrie_error *error = NULL;
    valkyrie_call *call = NULL;
    check(valkyrie_client_open(client, "/echo", options, &call, &error), error);
    return call;
}

static void send_message(const valkyrie_call *call, valkyrie_bytes message) {
    valkyrie_error *error = NULL;
    check(valkyrie_call_send(call, message, &error), error);
}

static void half_close(const valkyrie_call *call) {
    valkyrie_error *error = NULL;
    check(valkyrie_call_half_close(call, &error), error);
}

/* The next message, NULL at the end. */
static valkyrie_message *receive(const valkyrie_call *call) {
    valkyrie_error *error = NULL;
    valkyrie_message *message = NULL;
    check(valkyrie_call_recv(call, &message, &error), error);
    return message;
}

/* Prints the status that the call ends with instead of a message. */
static void print_status(const char *what, const valkyrie_call *call) {
    valkyrie_error *error = NULL;
    valkyrie_message *message = NULL;
    valkyrie_code code = valkyrie_call_recv(call, &message, &error);
    valkyrie_bytes reason = valkyrie_error_reason(error);
    printf("%s %s %.*s\n", what, valkyrie_code_name(code), (int)reason.len, (const char *)reason.data);
    valkyrie_message_free(message);
    valkyrie_error_free(error);
}

static void unary(const valkyrie_client *client) {
    valkyrie_error *error = NULL;
    valkyrie_message *response = NULL;
    check(valkyrie_client_request(client, text("Hello, World!"), &response, &error), error);
    valkyrie_bytes message = valkyrie_message_bytes(response);
    printf("call %.*s\n", (int)message.len, (const char *)message.data);
    valkyrie_message_free(response);
}

/* What is written to it is hashed; closing it prints the line "<name> <hash>". */
static FILE *hasher(const char *name) {
    char command[64];
    snprintf(command, sizeof command, "hash=$(sha256sum); echo \"%s $hash\"", name);
    FILE *pipe = popen(command, "w");
    if (pipe == NULL) exit(1);
    return pipe;
}

struct upload {
    const valkyrie_call *call;
    char **paths;
    FILE *hash;
    size_t bytes;
};

static void *run_upload(void *argument) {
    struct upload *upload = (struct upload *)argument;
    uint8_t *chunk = (uint8_t *)malloc(CHUNK);
    for (char **path = upload->paths; *path != NULL; path++) {
        FILE *file = fopen(*path, "rb");
        if (file == NULL || chunk == NULL) {
            perror(*path);
            exit(1);
        }
        for (size_t len; (len = fread(chunk, 1, CHUNK, file)) > 0; upload->bytes += len) {
            valkyrie_bytes message = {chunk, len};
            fwrite(chunk, 1, len, upload->hash);
            send_message(upload->call, message);
        }
        fclose(file);
    }
    half_close(upload->call);
    free(chunk);
    return NULL;
}

/* The files go up and come down on one stream. Each end hashes what it gets. */
static void transfer(const valkyrie_client *client, char **paths) {
    double began = now();
    valkyrie_metadata_entry digest = {"want-digest", text("sha-256")};
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    options.metadata = &digest;
    options.metadata_len = 1;
    valkyrie_call *call = open_echo(client, &options);
    fflush(stdout);
    struct upload upload = {call, paths, hasher("sent"), 0};
    FILE *received = hasher("received");
    pthread_t uploading;
    if (pthread_create(&uploading, NULL, run_upload, &upload) != 0) exit(1);
    for (valkyrie_message *message; (message = receive(call)) != NULL; valkyrie_message_free(message)) {
        valkyrie_bytes bytes = valkyrie_message_bytes(message);
        fwrite(bytes.data, 1, bytes.len, received);
    }
    pthread_join(uploading, NULL);
    if (pclose(upload.hash) != 0 || pclose(received) != 0) exit(1);
    printf("bytes %zu\nseconds %.3f\n", upload.bytes, now() - began);
    valkyrie_bytes key, value;
    for (size_t at = 0; valkyrie_metadata_at(valkyrie_call_trailers(call), at, &key, &value); at++) {
        if (key.len == strlen("digest-sha-256") && memcmp(key.data, "digest-sha-256", key.len) == 0)
            printf("server %.*s\n", (int)value.len, (const char *)value.data);
    }
    valkyrie_call_free(call);
}

/* None of the calls can end before all of them are open, on one connection. */
static void in_flight(const valkyrie_client *client) {
    static valkyrie_call *calls[IN_FLIGHT];
    char number[16];
    double began = now();
    int answered = 0;
    for (int at = 0; at < IN_FLIGHT; at++) {
        calls[at] = open_echo(client, NULL);
        snprintf(number, sizeof number, "%d", at);
        send_message(calls[at], text(number));
    }
    for (int at = 0; at < IN_FLIGHT; at++) half_close(calls[at]);
    for (int at = 0; at < IN_FLIGHT; at++) {
        valkyrie_message *message = receive(calls[at]);
        snprintf(number, sizeof number, "%d", at);
        answered += is(message, number) && receive(calls[at]) == NULL;
        valkyrie_message_free(message);
        valkyrie_call_free(calls[at]);
    }
    printf("in_flight %d\nin_flight_seconds %.3f\n", answered, now() - began);
}

static void *run_cancelled(void *argument) {
    valkyrie_message *message = NULL;
    static valkyrie_code code;
    code = valkyrie_call_recv((const valkyrie_call *)argument, &message, NULL);
    return &code;
}

/* A call that waits for an answer is given up; the same connection goes on. */
static void cancel(const valkyrie_client *client) {
    valkyrie_call *call = open_echo(client, NULL);
    valkyrie_message *response = NULL;
    void *code = NULL;
    pthread_t waiting;
    if (pthread_create(&waiting, NULL, run_cancelled, call) != 0) exit(1);
    valkyrie_call_cancel(call);
    pthread_join(waiting, &code);
    valkyrie_call_free(call);
    check(valkyrie_client_request(client, text("still here"), &response, NULL), NULL);
    valkyrie_message_free(response);
    printf("cancelled %s\n", *(valkyrie_code *)code == VALKYRIE_CODE_CANCELLED ? "true" : "false");
}

static void deadline(const valkyrie_client *client) {
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    options.timeout_ms = 100;
    valkyrie_call *call = open_echo(client, &options);
    print_status("deadline", call);
    valkyrie_call_free(call);
}

/* The server stops between two messages: one call ends well in the time it is given, another does not end. */
static void server_stops(const valkyrie_client *client) {
    valkyrie_call *ends = open_echo(client, NULL), *stays = open_echo(client, NULL);
    send_message(ends, text("before"));
    send_message(stays, text("before"));
    valkyrie_message_free(receive(ends));
    valkyrie_message_free(receive(stays));
    printf("ready\n");
    fflush(stdout);
    valkyrie_message *response = NULL;
    valkyrie_error *error = NULL;
    valkyrie_code code;
    /* So short a time leaves none to wait for the server's return. */
    valkyrie_call_options briefly = VALKYRIE_CALL_OPTIONS_INIT;
    briefly.timeout_ms = 500;
    while ((code = valkyrie_client_call(client, "/echo", text("anyone there?"), &briefly, &response, &error)) == 0)
        valkyrie_message_free(response);
    valkyrie_bytes reason = valkyrie_error_reason(error);
    printf("refused %s %.*s\n", valkyrie_code_name(code), (int)reason.len, (const char *)reason.data);
    valkyrie_error_free(error);
    send_message(ends, text("after"));
    half_close(ends);
    valkyrie_message *message = receive(ends);
    if (is(message, "after") && receive(ends) == NULL) printf("finished OK after\n");
    valkyrie_message_free(message);
    valkyrie_call_free(ends);
    print_status("cut", stays);
    valkyrie_call_free(stays);
}

int main(int argc, char **argv) {
    valkyrie_client *client = NULL;
    valkyrie_error *error = NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: demo endpoint file...\n");
        return 2;
    }
    check(valkyrie_client_connect(argv[1], NULL, &client, &error), error);
    unary(client);
    transfer(client, argv + 2);
    in_flight(client);
    cancel(client);
    deadline(client);
    server_stops(client);
    valkyrie_client_free(client);
    return 0;
}
