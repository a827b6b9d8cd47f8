/* One client and one queue used by many threads at once: calls that block, callbacks that one thread dispatches, cancels
 * from another, and a stream in each. Usage: threads ENDPOINT [ROUNDS]. Valgrind's DRD runs it too. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include "check.h"

enum { THREADS = 4, MESSAGES = 8 };

static valkyrie_client *client;
static valkyrie_queue *queue;
static int rounds;

/* What the threads share, by the rules of pthreads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int begun, ended, cancelled, working = THREADS;
static uint64_t to_cancel[THREADS];

static void count(const valkyrie_completion *completion, void *user_data) {
    CHECK(user_data == &ended);
    CHECK(completion->code == 0 || completion->code == VALKYRIE_CODE_CANCELLED);
    pthread_mutex_lock(&lock);
    ended++;
    cancelled += completion->code == VALKYRIE_CODE_CANCELLED;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    valkyrie_message_free(completion->message);
    valkyrie_error_free(completion->error);
}

static uint64_t start(const char *method, const char *words) {
    valkyrie_operation call = calling(client, method, words);
    uint64_t number = 0;
    pthread_mutex_lock(&lock);
    begun++;
    pthread_mutex_unlock(&lock);
    CHECK(valkyrie_operation_start(queue, &call, &number, NULL, count, &ended) == 0);
    return number;
}

static void stream(int thread) {
    valkyrie_call *call = NULL;
    valkyrie_message *message = NULL;
    char words[32];
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    for (int i = 0; i < MESSAGES; i++) {
        snprintf(words, sizeof words, "%d of %d", i, thread);
        CHECK(valkyrie_call_send(call, text(words), NULL) == 0);
    }
    CHECK(valkyrie_call_half_close(call, NULL) == 0);
    for (int i = 0; i < MESSAGES; i++) {
        snprintf(words, sizeof words, "%d of %d", i, thread);
        CHECK(valkyrie_call_recv(call, &message, NULL) == 0);
        CHECK(same(valkyrie_message_bytes(message), words));
        valkyrie_message_free(message);
    }
    CHECK(valkyrie_call_recv(call, &message, NULL) == 0 && message == NULL);
    CHECK(valkyrie_call_free(call) == 0);
}

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    for (int round = 0; round < rounds; round++) {
        char words[32];
        snprintf(words, sizeof words, "%d in round %d", thread, round);
        echo(client, words);
        start("/echo", words);
        uint64_t hangs = start("/test/hang", "threads");
        pthread_mutex_lock(&lock);
        while (to_cancel[thread] != 0) pthread_cond_wait(&changed, &lock);
        to_cancel[thread] = hangs;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        stream(thread);
    }
    pthread_mutex_lock(&lock);
    working--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* Ends what the others began. */
static void *cancel(void *argument) {
    (void)argument;
    pthread_mutex_lock(&lock);
    for (;;) {
        uint64_t number = 0;
        for (int i = 0; i < THREADS && number == 0; i++) {
            number = to_cancel[i];
            to_cancel[i] = 0;
        }
        if (number != 0) {
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&lock);
            valkyrie_operation_cancel(number);
            pthread_mutex_lock(&lock);
        } else if (working == 0) {
            break;
        } else {
            pthread_cond_wait(&changed, &lock);
        }
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void *dispatch(void *argument) {
    (void)argument;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (working > 0 && ended == begun) pthread_cond_wait(&changed, &lock);
        bool over = working == 0 && ended == begun;
        pthread_mutex_unlock(&lock);
        if (over) return NULL;
        valkyrie_queue_dispatch(queue, 60000);
    }
}

/* Frees what another thread blocks on: it gets an error, or what it asked for. */
static void *receive(void *argument) {
    valkyrie_message *message = NULL;
    valkyrie_code code = valkyrie_call_recv((valkyrie_call *)argument, &message, NULL);
    CHECK(code == VALKYRIE_CODE_CANCELLED || code == VALKYRIE_CODE_INVALID_ARGUMENT || code == VALKYRIE_CODE_FAILED_PRECONDITION);
    CHECK(message == NULL);
    return NULL;
}

static void *wait_for_long(void *argument) {
    CHECK(valkyrie_queue_dispatch((valkyrie_queue *)argument, VALKYRIE_NO_TIMEOUT) == 0);
    return NULL;
}

static void freed_while_used(void) {
    pthread_t receiving, waiting;
    valkyrie_call *call = NULL;
    valkyrie_queue *other = NULL;
    CHECK(valkyrie_client_open(client, "/echo", NULL, &call, NULL) == 0);
    CHECK(valkyrie_queue_new(&other, NULL) == 0);
    CHECK(pthread_create(&receiving, NULL, receive, call) == 0);
    CHECK(pthread_create(&waiting, NULL, wait_for_long, other) == 0);
    CHECK(valkyrie_call_free(call) == 0);
    CHECK(valkyrie_queue_free(other) == 0);
    pthread_join(receiving, NULL);
    pthread_join(waiting, NULL);
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS], dispatching, cancelling;
    CHECK(argc >= 2);
    rounds = argc > 2 ? atoi(argv[2]) : 10;
    client = connect_to(argv[1]);
    CHECK(valkyrie_queue_new(&queue, NULL) == 0);
    CHECK(pthread_create(&dispatching, NULL, dispatch, NULL) == 0);
    CHECK(pthread_create(&cancelling, NULL, cancel, NULL) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_join(cancelling, NULL);
    pthread_join(dispatching, NULL);
    CHECK(ended == 2 * THREADS * rounds && cancelled == THREADS * rounds);
    for (int round = 0; round < rounds; round++) freed_while_used();
    CHECK(valkyrie_queue_free(queue) == 0 && valkyrie_client_free(client) == 0);
    CHECK(valkyrie_in_flight() == 0 && valkyrie_alive() == 0);
    valkyrie_shutdown();
    puts("ok");
    return 0;
}
