/* A client made before a fork works in the child, and the parent is not disturbed: forks while threads call, by blocking
 * and by callback, and with calls in flight. Usage: fork ENDPOINT [FORKS]. */
#define _POSIX_C_SOURCE 200809L
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

enum { THREADS = 3 };

static valkyrie_client *client;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool over;
static long calls[THREADS];

static void echo_by_callback(valkyrie_queue *queue, const char *words);

/* Calls until it is over; each answer must be its own. */
static void *load(void *argument) {
    int thread = (int)(intptr_t)argument;
    valkyrie_queue *queue = NULL;
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    for (long i = 0;; i++) {
        char words[64];
        snprintf(words, sizeof words, "parent %d call %ld", thread, i);
        if (i % 2 == 0) echo(client, words);
        else echo_by_callback(queue, words);
        pthread_mutex_lock(&lock);
        bool ends = over;
        calls[thread]++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        if (ends) break;
    }
    CHECK(valkyrie_queue_free(queue) == 0);
    return NULL;
}

/* Keeps the library's table of objects busy: a fork may find it locked. */
static void *look(void *argument) {
    for (bool ends = false; !ends;) {
        for (int i = 0; i < 1000; i++) CHECK(valkyrie_metadata_len((const valkyrie_metadata *)argument) == 0);
        pthread_mutex_lock(&lock);
        ends = over;
        pthread_mutex_unlock(&lock);
        sched_yield();
    }
    return NULL;
}

typedef struct {
    const char *words;
    int callbacks;
    valkyrie_code code;
} expected;

static void compare(const valkyrie_completion *completion, void *user_data) {
    expected *wanted = (expected *)user_data;
    wanted->callbacks++;
    wanted->code = completion->code;
    CHECK(completion->code != 0 || same(valkyrie_message_bytes(completion->message), wanted->words));
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
}

static void wait_for(valkyrie_queue *queue, const expected *wanted) {
    while (wanted->callbacks == 0) {
        struct pollfd readable = {valkyrie_queue_fd(queue), POLLIN, 0};
        CHECK(poll(&readable, 1, 60000) == 1);
        valkyrie_queue_dispatch(queue, 0);
    }
}

static void echo_by_callback(valkyrie_queue *queue, const char *words) {
    expected wanted = {words, 0, 0};
    valkyrie_operation call = calling(client, "/echo", words);
    CHECK(valkyrie_operation_start(queue, &call, NULL, NULL, compare, &wanted) == 0);
    wait_for(queue, &wanted);
    CHECK(wanted.callbacks == 1 && wanted.code == 0);
}

static void child(valkyrie_queue *queue, valkyrie_call *call, const expected *hanging, valkyrie_message *message) {
    char words[64];
    /* What was in flight is the parent's, and here it has failed. */
    wait_for(queue, hanging);
    CHECK(hanging->callbacks == 1 && hanging->code == VALKYRIE_CODE_UNAVAILABLE);
    CHECK(valkyrie_call_send(call, text("x"), NULL) == VALKYRIE_CODE_UNAVAILABLE);
    CHECK(same(valkyrie_message_bytes(message), "before"));
    /* No lock was left by a thread that is not here. */
    CHECK(valkyrie_alive() > 0);
    for (int i = 0; i < 5; i++) {
        snprintf(words, sizeof words, "child %ld call %d", (long)getpid(), i);
        echo(client, words);
        echo_by_callback(queue, words);
    }
    CHECK(valkyrie_call_free(call) == 0 && valkyrie_message_free(message) == 0);
    CHECK(valkyrie_queue_free(queue) == 0 && valkyrie_client_free(client) == 0);
    CHECK(valkyrie_client_free(client) == VALKYRIE_CODE_INVALID_ARGUMENT);
    _exit(0); /* Every check held; the parent looks at it. */
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS], looking;
    valkyrie_message *looked_at = NULL;
    CHECK(argc >= 2);
    int forks = argc > 2 ? atoi(argv[2]) : 50;
    client = connect_to(argv[1]);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, load, (void *)(intptr_t)i) == 0);
    CHECK(valkyrie_client_request(client, text("x"), &looked_at, NULL) == 0);
    CHECK(pthread_create(&looking, NULL, look, (void *)valkyrie_message_metadata(looked_at)) == 0);
    for (int i = 0; i < forks; i++) {
        valkyrie_queue *queue = NULL;
        valkyrie_call *call = NULL;
        valkyrie_message *message = NULL;
        uint64_t number = 0;
        expected hanging = {"", 0, 0};
        valkyrie_operation hang = calling(client, "/test/hang", "fork");
        valkyrie_call_options forever = VALKYRIE_CALL_OPTIONS_INIT;
        forever.timeout_ms = VALKYRIE_NO_TIMEOUT;
        hang.call_options = &forever;
        CHECK(valkyrie_queue_new(&queue, NULL) == 0);
        CHECK(valkyrie_operation_start(queue, &hang, &number, NULL, compare, &hanging) == 0);
        CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
        CHECK(valkyrie_client_request(client, text("before"), &message, NULL) == 0);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(120);
            child(queue, call, &hanging, message);
        }
        int status = 0;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        /* The parent's are as they were. */
        CHECK(hanging.callbacks == 0);
        valkyrie_operation_cancel(number);
        wait_for(queue, &hanging);
        CHECK(hanging.code == VALKYRIE_CODE_CANCELLED);
        valkyrie_message *echoed = NULL;
        CHECK(valkyrie_call_send(call, text("y"), NULL) == 0 && valkyrie_call_recv(call, &echoed, NULL) == 0);
        CHECK(same(valkyrie_message_bytes(echoed), "y"));
        CHECK(valkyrie_message_free(echoed) == 0 && valkyrie_message_free(message) == 0);
        CHECK(valkyrie_call_free(call) == 0 && valkyrie_queue_free(queue) == 0);
    }
    /* Each thread has got on since the last fork. */
    pthread_mutex_lock(&lock);
    for (int i = 0; i < THREADS; i++)
        for (long seen = calls[i]; calls[i] == seen;) pthread_cond_wait(&changed, &lock);
    over = true;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_join(looking, NULL);
    CHECK(valkyrie_message_free(looked_at) == 0 && valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}
