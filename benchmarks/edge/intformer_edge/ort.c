/* ort ONNXRUNTIME.SO MODEL.onnx TOKENS: runs one sequence of random tokens on one thread, counted
 * between two calls of getppid(); the first run, before them, is not counted.
 *
 * The functions of ONNX Runtime are called by their places in the table OrtApi, which never change. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
  GET_ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION = 7,
  RUN = 9,
  CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_NUM_THREADS = 24,
  SET_INTER_OP_NUM_THREADS = 25,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  INT64 = 7,
  WARNING = 2,
  ARENA = 1,
  MOST = 512,
};
typedef struct {
  void *const *(*api)(uint32_t version);
  const char *(*version)(void);
} api_base;
static void *const *api;

static void done(void *status) {
  if (!status) return;
  fprintf(stderr, "%s\n", ((const char *(*)(void *))api[GET_ERROR_MESSAGE])(status));
  exit(1);
}

/* The types of arguments are those that are written; the calling convention needs no more. */
#pragma GCC diagnostic ignored "-Wdeprecated-non-prototype"
#define CALL(place, ...) done(((void *(*)())api[place])(__VA_ARGS__))

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  api = ((api_base * (*)(void)) dlsym(library, "OrtGetApiBase"))()->api(1);
  int64_t tokens = atoi(argv[3]), shape[2] = {1, tokens}, ids[MOST], mask[MOST];
  if (tokens < 1 || tokens > MOST) return 2;
  for (int i = 0; i < tokens; i++) ids[i] = 1000 + rand() % 29000, mask[i] = 1;
  void *env, *options, *session, *memory, *inputs[2], *output = NULL;
  CALL(CREATE_ENV, WARNING, "count", &env);
  CALL(CREATE_SESSION_OPTIONS, &options);
  CALL(SET_INTRA_OP_NUM_THREADS, options, 1);
  CALL(SET_INTER_OP_NUM_THREADS, options, 1);
  CALL(CREATE_SESSION, env, argv[2], options, &session);
  CALL(CREATE_CPU_MEMORY_INFO, ARENA, 0, &memory);
  size_t bytes = (size_t)tokens * sizeof *ids;
  CALL(CREATE_TENSOR_WITH_DATA, memory, ids, bytes, shape, (size_t)2, INT64, &inputs[0]);
  CALL(CREATE_TENSOR_WITH_DATA, memory, mask, bytes, shape, (size_t)2, INT64, &inputs[1]);
  const char *names[] = {"input_ids", "attention_mask"}, *results[] = {"logits"};
  for (int i = 0; i < 2; i++) {
    if (i) getppid();
    CALL(RUN, session, NULL, names, inputs, (size_t)2, results, (size_t)1, &output);
  }
  getppid();
  return 0;
}
