/* The server inside the library: no socket and no process, while a call hangs in it and a stream is open. It is always
 * echo://core that is called; the endpoint that each of these programs is given is not used. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <unistd.h>
#include "check.h"

static int sockets(void) {
    int found = 0;
    DIR *all = opendir("/proc/self/fd");
    CHECK(all != NULL);
    for (struct dirent *entry = readdir(all); entry != NULL; entry = readdir(all)) {
        char target[8] = {0};
        /* The dots, and the list's own, are none. */
        if (readlinkat(dirfd(all), entry->d_name, target, sizeof target - 1) == 7) found += !strcmp(target, "socket:");
    }
    CHECK(closedir(all) == 0);
    return found;
}

static bool children(void) {
    bool found = false;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (struct dirent *task = readdir(tasks); task != NULL; task = readdir(tasks)) {
        char path[300];
        if (task->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/children", task->d_name);
        FILE *list = fopen(path, "r");
        CHECK(list != NULL);
        found = found || fgetc(list) != EOF;
        CHECK(fclose(list) == 0);
    }
    CHECK(closedir(tasks) == 0);
    return found;
}

static void ended(const valkyrie_completion *completion, void *user_data) {
    *(valkyrie_code *)user_data = completion->code;
    valkyrie_error_free(completion->error);
}

/* Waits until the handler of the hanging call has begun or has been dropped. */
static void hanging(const valkyrie_client *client, const char *state) {
    valkyrie_metadata_entry until = {"until", text(state)};
    valkyrie_call_options options = VALKYRIE_CALL_OPTIONS_INIT;
    options.metadata = &until;
    options.metadata_len = 1;
    valkyrie_message *counts = NULL;
    CHECK(valkyrie_client_call(client, "/test/hang_stats", text("key"), &options, &counts, NULL) == 0);
    CHECK(valkyrie_message_free(counts) == 0);
}

int main(void) {
    int before = sockets();
    valkyrie_client *client = connect_to("echo://core");
    valkyrie_operation hang = calling(client, "/test/hang", "key");
    valkyrie_queue *queue = NULL;
    valkyrie_call *call = NULL;
    valkyrie_message *message = NULL;
    valkyrie_code code = VALKYRIE_CODE_OK;
    uint64_t number = 0;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(valkyrie_operation_start(queue, &hang, &number, NULL, ended, &code) == 0);
    hanging(client, "started");
    echo(client, "hello");
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    CHECK(valkyrie_call_send(call, text("x"), NULL) == 0);
    CHECK(valkyrie_call_recv(call, &message, NULL) == 0 && same(valkyrie_message_bytes(message), "x"));
    CHECK(sockets() == before && !children());
    valkyrie_operation_cancel(number);
    CHECK(valkyrie_queue_dispatch(queue, 60000) == 1 && code == VALKYRIE_CODE_CANCELLED);
    hanging(client, "dropped");
    CHECK(valkyrie_message_free(message) == 0 && valkyrie_call_free(call) == 0);
    CHECK(valkyrie_queue_free(queue) == 0 && valkyrie_client_close(client, NULL) == 0);
    CHECK(valkyrie_client_free(client) == 0);
    return 0;
}
