/* What must leave nothing behind: a storm of cancels, calls, streams, and clients made and freed. Prints how much the
 * memory grew. Usage: soak ENDPOINT [CANCELS CALLS CLIENTS]. */
#define _POSIX_C_SOURCE 200809L
#include <unistd.h>
#include "check.h"

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

/* The answer to a message, as text. */
static const char *answer(const valkyrie_client *client, const char *method, const char *words,
                          const valkyrie_call_options *options) {
    static char answered[256];
    valkyrie_message *reply = NULL;
    CHECK(valkyrie_client_call(client, method, text(words), options, &reply, NULL) == 0);
    valkyrie_bytes bytes = valkyrie_message_bytes(reply);
    snprintf(answered, sizeof answered, "%.*s", (int)bytes.len, (const char *)bytes.data);
    valkyrie_message_free(reply);
    return answered;
}

/* As many calls at once and as many streams, all given up while they run or wait, and none completes beside them: a server
 * of their own has nothing of them left, and their connection lives. */
static void storm(const valkyrie_client *opener, long cancels) {
    char endpoint[256];
    snprintf(endpoint, sizeof endpoint, "%s", answer(opener, "/test/private", "tcp", NULL));
    valkyrie_client *client = connect_to(endpoint), *watch = connect_to(endpoint);
    valkyrie_operation hang = calling(client, "/test/hang", "storm");
    valkyrie_call_options until = VALKYRIE_CALL_OPTIONS_INIT;
    valkyrie_metadata_entry started = {"until", text("started")};
    valkyrie_queue *queue = NULL;
    uint64_t *numbers = (uint64_t *)calloc((size_t)cancels, sizeof *numbers);
    tally seen = {0, 0};
    until.metadata = &started;
    until.metadata_len = 1;
    CHECK(numbers != NULL && valkyrie_queue_new(&queue, NULL) == 0);
    for (long i = 0; i < cancels; i++)
        CHECK(valkyrie_operation_start(queue, &hang, &numbers[i], NULL, count, &seen) == 0);
    answer(watch, "/test/hang_stats", "storm", &until);
    for (long i = 0; i < cancels; i++) valkyrie_operation_cancel(numbers[i]);
    while (seen.ended < cancels) CHECK(valkyrie_queue_dispatch(queue, 60000) > 0);
    CHECK(seen.cancelled == cancels && valkyrie_in_flight() == 0);
    free(numbers);
    CHECK(valkyrie_queue_free(queue) == 0);
    for (long i = 0; i < cancels; i++) {
        valkyrie_call *call = NULL;
        valkyrie_message *message = NULL;
        CHECK(valkyrie_client_open(client, "/test/hang", NULL, &call, NULL) == 0);
        if (i % 2 == 0) CHECK(valkyrie_call_send(call, text("storm"), NULL) == 0);
        valkyrie_call_cancel(call);
        CHECK(valkyrie_call_recv(call, &message, NULL) == VALKYRIE_CODE_CANCELLED);
        CHECK(valkyrie_call_free(call) == 0);
    }
    const char *nothing = "{\"accepted\":2,\"streams\":0,\"running\":0,\"queued\":0,\"unread\":0,\"unsent\":0,\"deadlines\":0}";
    while (strcmp(answer(client, "/test/held", "", NULL), nothing) != 0) {}
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 3);
    CHECK(valkyrie_client_free(client) == 0 && valkyrie_client_free(watch) == 0);
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
    long cancels = argc == 5 ? atol(argv[2]) : 10000, wanted_calls = argc == 5 ? atol(argv[3]) : 1000;
    long wanted_clients = argc == 5 ? atol(argv[4]) : 100;
    valkyrie_client *client = connect_to(argv[1]);
    storm(client, cancels);
    /* Memory is compared between two equal halves: the first also fills what is kept for ever. */
    long began = 0;
    int open = 0;
    for (int half = 0; half < 2; half++) {
        if (half == 1) {
            began = resident();
            open = descriptors();
        }
        storm(client, cancels / 20);
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
