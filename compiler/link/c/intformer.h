/* C interface of a compiled intformer library. Integers only: token ids in, int32 logits out.
 *
 * Two ways to get at a library:
 *   const intformer_api *api = intformer_open("libmodel.so", err, sizeof err);   intformer_open.c
 *   const intformer_api *api = intformer_get_model();     linked in, `model` being its name
 *
 * Everything behind the table is static: there is nothing to close. All functions may be called
 * from any thread at any time, also after fork() - but a GPU does not survive fork(): the child of a
 * process that used it gets INTFORMER_GPU. */
#ifndef INTFORMER_H
#define INTFORMER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INTFORMER_ABI_VERSION 6

enum {
  INTFORMER_OK = 0,
  INTFORMER_BAD_INPUT = 1, /* the caller's numbers or names; the message says which */
  INTFORMER_BAD_OUTPUT = 2, /* out is NULL or too small */
  INTFORMER_CPU = 3, /* this CPU lacks an instruction set the library was compiled for */
  INTFORMER_MEMORY = 4, /* not enough memory */
  INTFORMER_KERNEL = 5, /* a kernel refused its arguments or failed: a fault in the library */
  INTFORMER_GPU = 6 /* no GPU or driver that runs the library; the message says why */
};

/* Called after each step for every buffer the step wrote: rows x width numbers of type dtype
 * ("uint8", "int8", "int16", "int32"), contiguous, valid during the call. Section plan.json says
 * how physical columns map to channels. */
typedef void (*intformer_observer)(void *user, int32_t step, const char *buffer, const void *data,
                                   int64_t rows, int64_t width, const char *dtype);

/* A batch of packed sequences: no padding, sequence i holds tokens cu_seqlens[i] up to
 * cu_seqlens[i + 1]. */
typedef struct {
  int32_t num_tokens;
  int32_t batch;
  int32_t num_positions; /* 0 unless the model computes rows at requested tokens */
  const int32_t *input_ids; /* [num_tokens] */
  const int32_t *cu_seqlens; /* [batch + 1], from 0 to num_tokens, increasing */
  const int32_t *token_type_ids; /* [num_tokens], or NULL: all 0 */
  const int32_t *position_ids; /* [num_tokens], or NULL: counted from the model's first position */
  const int32_t *positions; /* [num_positions] indices of tokens, or NULL */
  intformer_observer observer; /* or NULL */
  void *user; /* handed to observer */
} intformer_input;

/* Later versions only add fields at the end, so a program built with this header runs every library
 * from ABI 4 on. Before reading a field that is newer than ABI 4, compare its offset with size. */
typedef struct {
  uint32_t size; /* bytes of this table in the library */
  uint32_t abi_version; /* INTFORMER_ABI_VERSION it was built with, at least 4 */
  uint32_t output_channels;
  const char *name;
  const uint8_t *build_id; /* 32 bytes, the same as in the file's footer */

  /* Data carried along, or NULL: "metadata.json", "graph.json", "plan.json", "packing.json",
   * "tensors.json", "tir/VARIANT.json.xz", "files/NAME" (tokenizer), "constants/NAME"; for GPUs
   * "cuda/VARIANT.cubin", ".ptx" and ".cu.xz". */
  const void *(*section)(const char *name, size_t *size);
  /* Name of section number index, NULL past the last. */
  const char *(*section_name)(size_t index);

  /* Numbers that run() writes: rows * output_channels; 0 if the counts in input are unusable. */
  size_t (*output_size)(const intformer_input *input);
  /* Computes the batch. out_len counts numbers. Returns INTFORMER_OK, or a code and a one-line
   * message in err (err may be NULL). Nothing is read beyond the stated counts. */
  int (*run)(const intformer_input *input, int32_t *out, size_t out_len, char *err,
             size_t err_len);

  /* Threads used by one run; 0 = as many as affinity and the cgroup's CPU quota allow (default).
   * A run that starts while another one computes uses its own thread only. On a GPU: 1. */
  int (*set_threads)(int threads); /* returns INTFORMER_BAD_INPUT for numbers outside 0..1024 */
  int (*get_threads)(void);

  /* A library may hold several variants of its kernels, all of which compute the same numbers. The
   * first call chooses the one that the environment variable INTFORMER_VARIANT names, else the
   * fastest that this machine runs; a library for a GPU opens the driver then. Name of the one in
   * use, or NULL: none runs here, run() says why. */
  const char *(*variant)(void);
  /* Changes it for runs that start from now on; NULL or "" chooses again as the first call does.
   * Returns INTFORMER_BAD_INPUT for a name that is not in metadata.json, INTFORMER_CPU or
   * INTFORMER_GPU for a variant that does not run here, with a message in err (err may be NULL). A
   * GPU variant has two forms, such as "t4 cubin" and "t4 ptx" (which the driver compiles); "t4" takes the first that
   * runs. */
  int (*set_variant)(const char *name, char *err, size_t err_len);
  /* Name of the GPU that runs the variant in use; NULL on a CPU, and where none runs. */
  const char *(*device)(void);

  /* Since ABI 5. For loaders, to check the data of a file after its code: the CRC-32 (zlib's) of
   * every `part` bytes of data, the last part shorter, by the CPU's own instructions for it and by
   * all threads of a run. */
  void (*checksums)(const void *data, size_t size, size_t part, uint32_t *crcs);

  /* Since ABI 6. Runs that the calling thread starts use no other thread; with alone = 0 those of
   * set_threads() again. For programs that compute many batches at once: a thread each finishes
   * them sooner than all threads do one after the other. Returns INTFORMER_OK or INTFORMER_MEMORY. */
  int (*run_alone)(int alone);
} intformer_api;

/* Exported by every library, together with intformer_get_<name>(). */
const intformer_api *intformer_get(void);

/* intformer_open.c: checks length and checksum of the file, the interface version and the glibc this
 * process runs on, then loads the library. NULL and a one-line message in err on failure. */
const intformer_api *intformer_open(const char *path, char *err, size_t err_len);

#ifdef __cplusplus
}
#endif
#endif
