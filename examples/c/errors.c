/* Errors: a method that is not there. Usage: errors [endpoint] */
#include <stdio.h>
#include <valkyrie.h>

int main(int argc, char **argv) {
    valkyrie_client *client = NULL;
    valkyrie_message *response = NULL;
    valkyrie_error *error = NULL;
    valkyrie_bytes nothing = {NULL, 0};
    valkyrie_code code = valkyrie_client_connect(argc > 1 ? argv[1] : "tcp://localhost:8080", NULL, &client, &error);
    if (code == 0) code = valkyrie_client_call(client, "/no/such/method", nothing, NULL, &response, &error);
    valkyrie_bytes reason = valkyrie_error_reason(error);
    printf("%s %.*s %s\n", valkyrie_code_name(code), (int)reason.len, (const char *)reason.data,
           valkyrie_error_message(error));
    valkyrie_error_free(error);
    valkyrie_message_free(response);
    valkyrie_client_free(client);
    return code == VALKYRIE_CODE_UNIMPLEMENTED ? 0 : 1;
}
