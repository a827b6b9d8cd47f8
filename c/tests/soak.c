/* What must leave nothing behind: a storm of cancels, calls, streams, and clients made and freed. Prints how much the
 * memory grew. Usage: soak ENDPOINT [CANCELS CALLS CLIENTS]. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>
#include "check.h"

#define BATCH 500L

typedef struct {
    long cancelled, ended;
} tally;

static void count(const valkyrie_completion *completion, void *user_data) {
    tally *seen = (tally *)user_data;
    seen->ended++;
    seen->cancelled += completion->code == VALKYRIE_CODE_CANCELLED;
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
}

/* The memory of this process, in KiB. */
static long resident(void) {
    long total = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &total, &pages) == 2);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Descriptors of this process. */
static int descriptors(void) {
    int open = 0;
    for (int fd = 0; fd < 4096; fd++) {
        char path[32], target[8];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        open += readlink(path, target, sizeof target) > 0;
    }
    return open;
}

/* Until no handler of this token runs at the server: each answer is its state at that time. */
static void server_is_idle(const valkyrie_client *client, const char *token) {
    for (;;) {
        valkyrie_message *reply = NULL;
        char words[128];
        CHECK(valkyrie_client_call(client, "/test/hang_stats", text(token), NULL, &reply, NULL) == 0);
        valkyrie_bytes bytes = valkyrie_message_bytes(reply);
        snprintf(words, sizeof words, "%.*s", (int)bytes.len, (const char *)bytes.data);
        valkyrie_message_free(reply);
        if (strstr(words, "\"running\":0") != NULL) return;
    }
}

/* Runs as many operations at once and hears of each. */
static void together(const valkyrie_operation *operation, long wanted, bool cancels) {
    static uint64_t numbers[BATCH];
    valkyrie_queue *queue = NULL;
    tally seen = {0, 0};
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    for (long i = 0; i < wanted; i++)
        CHECK(valkyrie_operation_start(queue, operation, &numbers[i], NULL, count, &seen) == 0);
    for (long i = 0; i < wanted && cancels; i++) valkyrie_operation_cancel(numbers[i]);
    while (seen.ended < wanted) CHECK(valkyrie_queue_dispatch(queue, 60000) > 0);
    CHECK(seen.cancelled == (cancels ? wanted : 0) && valkyrie_in_flight() == 0);
    CHECK(valkyrie_queue_free(queue) == 0);
}

/* As many calls and as many streams, all given up while they run or wait. In batches: a server ends a connection that
 * resets 1,000 calls more than it completes. */
static void storm(const valkyrie_client *client, long cancels) {
    char token[32];
    snprintf(token, sizeof token, "storm %ld", (long)getpid());
    valkyrie_operation hang = calling(client, "/test/hang", token), echo = calling(client, "/echo", token);
    for (long left = cancels; left > 0; left -= BATCH) {
        long batch = left < BATCH ? left : BATCH;
        together(&hang, batch, true);
        together(&echo, batch, false);
        for (long i = 0; i < batch; i++) {
            valkyrie_call *call = NULL;
            valkyrie_message *message = NULL;
            CHECK(valkyrie_client_open(client, "/test/hang", NULL, &call, NULL) == 0);
            if (i % 2 == 0) CHECK(valkyrie_call_send(call, text(token), NULL) == 0);
            valkyrie_call_cancel(call);
            CHECK(valkyrie_call_recv(call, &message, NULL) == VALKYRIE_CODE_CANCELLED);
            CHECK(valkyrie_call_free(call) == 0);
        }
        together(&echo, batch, false);
    }
    server_is_idle(client, token);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 1);
}

static void calls(const valkyrie_client *client, long wanted) {
    valkyrie_message *reply = NULL;
    valkyrie_error *error = NULL;
    for (long i = 0; i < wanted; i++) {
        if (i % 8 != 0) echo(client, "x");
        else CHECK(valkyrie_client_call(client, "/no/such", text("x"), NULL, &reply, &error) != 0);
        valkyrie_error_free(error);
        error = NULL;
    }
}

static void clients(const char *endpoint, long wanted) {
    for (long i = 0; i < wanted; i++) {
        valkyrie_client *client = connect_to(endpoint);
        if (i % 8 == 0) echo(client, "x");
        CHECK(valkyrie_client_free(client) == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 2 || argc == 5);
    long cancels = argc == 5 ? atol(argv[2]) : 500, wanted_calls = argc == 5 ? atol(argv[3]) : 1000;
    long wanted_clients = argc == 5 ? atol(argv[4]) : 100;
    valkyrie_client *client = connect_to(argv[1]);
    /* Memory is compared between two equal halves: the first also fills what is kept for ever. */
    long began = 0;
    int open = 0;
    for (int half = 0; half < 2; half++) {
        if (half == 1) {
            began = resident();
            open = descriptors();
        }
        storm(client, cancels / 2);
        calls(client, wanted_calls / 2);
        clients(argv[1], wanted_clients / 2);
    }
    long grown = resident() - began;
    printf("%ld cancels each of calls and streams, %ld calls, %ld clients: %ld KiB more in the second half\n", cancels,
           wanted_calls, wanted_clients, grown);
    /* Not more than 1 KiB for 1,000 calls and 1 KiB for 100 clients, and room for pages that an allocator keeps. */
    CHECK(grown <= 1024 + wanted_calls / 2000 + wanted_clients / 200);
    /* A connection is closed by the library's own thread, which answers these calls too. */
    for (int i = 0; descriptors() > open; i++) {
        CHECK(i < 10000);
        echo(client, "x");
    }
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}
