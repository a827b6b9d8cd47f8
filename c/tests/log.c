/* What happens to connections, as a program logs it: an operation that its callback begins again. Usage: log ENDPOINT. */
#include "check.h"

typedef struct {
    valkyrie_queue *queue;
    const char *level;
    const char *endpoint; /* counted are its records */
    int records;
    int ended;
    char last[256];
} listener;

static void listen_on(listener *here);

static bool has(const valkyrie_metadata *metadata, const char *name, const char *wanted) {
    valkyrie_bytes key, value;
    for (size_t i = 0; valkyrie_metadata_at(metadata, i, &key, &value); i++) {
        if (same(key, name)) return wanted == NULL || same(value, wanted);
    }
    return false;
}

static void hear(const valkyrie_completion *completion, void *user_data) {
    listener *here = (listener *)user_data;
    CHECK(completion->kind == VALKYRIE_OPERATION_LOG && (completion->message == NULL) == (completion->code != 0));
    if (completion->code != 0) {
        CHECK(completion->code == VALKYRIE_CODE_CANCELLED);
        here->ended++;
        valkyrie_error_free(completion->error);
        return;
    }
    const valkyrie_metadata *facts = valkyrie_message_metadata(completion->message);
    CHECK(has(facts, "level", NULL) && has(facts, "target", "valkyrie.connection"));
    if (has(facts, "endpoint", here->endpoint)) {
        valkyrie_bytes sentence = valkyrie_message_bytes(completion->message);
        CHECK(sentence.len < sizeof here->last);
        memcpy(here->last, sentence.data, sentence.len);
        here->last[sentence.len] = 0;
        here->records++;
    }
    CHECK(valkyrie_message_free(completion->message) == 0);
    listen_on(here);
}

static void listen_on(listener *here) {
    valkyrie_operation operation = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_LOG);
    operation.target = here->level;
    CHECK(valkyrie_operation_start(here->queue, &operation, NULL, NULL, hear, here) == 0);
}

static void wait_for(listener *here, int records) {
    while (here->records < records) CHECK(valkyrie_queue_dispatch(here->queue, 60000) > 0);
}

static void ignore(const valkyrie_completion *completion, void *user_data) {
    (void)completion, (void)user_data;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *absent = getenv("VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT");
    CHECK(absent != NULL);
    listener warnings = {NULL, NULL, absent, 0, 0, ""};
    listener all = {NULL, "debug", argv[1], 0, 0, ""};
    CHECK(valkyrie_queue_new(&warnings.queue, NULL) == 0 && valkyrie_queue_new(&all.queue, NULL) == 0);
    listen_on(&warnings);
    listen_on(&all);
    CHECK(valkyrie_in_flight() == 0);

    valkyrie_client *client = NULL;
    CHECK(valkyrie_client_connect(absent, NULL, &client, NULL) == VALKYRIE_CODE_UNAVAILABLE && client == NULL);
    wait_for(&warnings, 1);
    CHECK(strncmp(warnings.last, "cannot connect to ", 18) == 0);

    /* Each queue hears of everything, from its own level up. */
    warnings.endpoint = argv[1];
    warnings.records = 0;
    client = connect_to(argv[1]);
    wait_for(&all, 1);
    CHECK(strncmp(all.last, "connected to ", 13) == 0);
    echo(client, "x");
    CHECK(valkyrie_client_close(client, NULL) == 0);
    wait_for(&all, 3);
    CHECK(strstr(all.last, " is over") != NULL);
    CHECK(valkyrie_client_free(client) == 0);
    CHECK(valkyrie_queue_dispatch(warnings.queue, 0) == 0 && warnings.records == 0);

    valkyrie_operation wrong = VALKYRIE_OPERATION_INIT(VALKYRIE_OPERATION_LOG);
    wrong.target = "loud";
    CHECK(valkyrie_operation_start(all.queue, &wrong, NULL, NULL, ignore, NULL) == VALKYRIE_CODE_INVALID_ARGUMENT);

    /* A queue that is freed ends what waits, and is told nothing more. */
    CHECK(valkyrie_queue_free(all.queue) == 0 && all.ended == 1);
    CHECK(valkyrie_client_connect(absent, NULL, &client, NULL) == VALKYRIE_CODE_UNAVAILABLE);
    warnings.endpoint = absent;
    wait_for(&warnings, 1);
    CHECK(valkyrie_queue_free(warnings.queue) == 0 && warnings.ended == 1);
    CHECK(valkyrie_alive() == 0 && valkyrie_in_flight() == 0);
    valkyrie_shutdown();
    return 0;
}
