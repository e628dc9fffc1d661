/* What the generated plan.c and the fixed sources share. Not installed. */
#ifndef INTFORMER_PLAN_H
#define INTFORMER_PLAN_H

#include <stdbool.h>

#include "intformer.h"

/* The ABI of kernels made by TVM: tvm/ffi/c_api.h and dlpack.h of apache-tvm-ffi 0.1. */
typedef struct {
  int32_t type_index; /* TVM_DLTENSOR */
  uint32_t zero;
  void *ptr;
} tvm_any;
enum { TVM_NONE = 0, TVM_DLTENSOR = 7 };

typedef struct {
  void *data;
  int32_t device_type, device_id; /* 1, 0: CPU */
  int32_t ndim;
  uint8_t code, bits; /* code 0 int, 1 uint */
  uint16_t lanes;
  const int64_t *shape;
  const int64_t *strides; /* NULL: contiguous */
  uint64_t byte_offset;
} dl_tensor;

typedef int32_t (*kernel_fn)(void *self, const tvm_any *args, int32_t num_args, tvm_any *result);

enum { BLOCK = 8, READ_AHEAD = 3, ALIGN = 64 }; /* rows, blocks, bytes */
enum { GPU_TILE = 128, GPU_ALIGN = 256 }; /* rows, bytes */
enum rows { TOKEN, SEQUENCE, POSITION, ROW_KINDS };
enum tensor_kind { INPUT, BUFFER, CONSTANT };
/* the first tensors of every plan, in this order */
enum { INPUT_IDS, TOKEN_TYPE_IDS, POSITION_IDS, CU_SEQLENS, POSITIONS, INPUTS };

typedef struct {
  const char *name;
  const char *dtype;
  enum tensor_kind kind;
  enum rows rows; /* inputs and buffers */
  uint8_t code, bits;
  int32_t slot; /* buffers: where in the arena */
  int32_t width; /* buffers */
  int32_t ndim;
  const int64_t *shape; /* constants */
  uint64_t offset; /* constants: in the blob */
} plan_tensor;

typedef struct {
  const char *name; /* of its kernel */
  int32_t first_arg, num_args; /* in plan.args */
  int32_t first_output, num_outputs; /* in plan.outputs */
  int32_t first_launch, num_launches; /* in plan.launches; on a GPU */
} plan_step;

/* What the grid of a launch follows; the first four are what kernels read on the device. */
enum count_kind { TOKENS, SEQUENCES, POSITION_ROWS, LONGEST, ONE, COUNTS };

/* One version of a GPU kernel. */
typedef struct {
  const char *function;
  int64_t limit; /* runs with at most this many rows use it */
  enum rows rows; /* of the limit */
  struct {
    enum count_kind count;
    int32_t divisor, factor; /* factor * ceil(count / divisor) blocks */
  } grid[3];
  int32_t threads; /* of one block */
  int32_t shared; /* bytes of dynamic shared memory */
} plan_launch;

typedef struct {
  uint64_t bytes[ROW_KINDS]; /* per block of rows; the slot holds the largest of the three */
} plan_slot;

/* The blob starts with this index, which readers of the file use as well (runtime/file.py): where
 * the zero-terminated name of each section, its first byte and its size are, from the blob's start. */
typedef struct {
  char magic[8]; /* IFINDEX1 */
  uint64_t count;
  struct {
    uint64_t name, offset, size;
  } sections[];
} blob_index;

/* x86-64: a bit of CPUID. AArch64 and RISC-V: leaf is a word of getauxval(), AT_HWCAP or AT_HWCAP2,
 * and bit one of its bits; the others are 0. */
typedef struct {
  const char *name;
  uint32_t leaf, subleaf;
  int32_t reg, bit; /* reg 0..3: eax, ebx, ecx, edx */
  uint32_t xcr0; /* state the operating system must save */
} plan_feature;

/* The kernels for one kind of chip, or one form of them: a GPU runs the cubin made for it, newer
 * ones the PTX, hence "t4 cubin" and "t4 ptx". All compute the same numbers in the same memory. */
typedef struct {
  const char *name;
  const kernel_fn *kernels; /* of each step; on a CPU */
  const plan_feature *features;
  int32_t num_features;
  int32_t major, minor; /* compute capability of the GPU */
  bool ptx;
  uint64_t offset; /* of the cubin or PTX in the blob; a zero byte follows it */
} plan_variant;

/* A note in the library says where this table is. It starts with what readers of the file need. */
typedef struct {
  uint32_t size; /* bytes of this table */
  uint32_t zero;
  const intformer_api *api;
  const unsigned char *blob;
  uint64_t blob_size;
  const plan_tensor *tensors;
  int32_t num_tensors;
  const plan_step *steps;
  int32_t num_steps;
  const plan_launch *launches;
  int32_t num_launches;
  const int32_t *args;
  int32_t num_args;
  const int32_t *outputs;
  const plan_slot *slots;
  int32_t num_slots;
  const plan_variant *variants; /* the fastest first */
  int32_t num_variants;
  int32_t output; /* tensor returned to the caller */
  const int32_t *output_columns; /* channel -> column, or NULL: the first output_channels */
  int32_t vocab_size, type_vocab_size, num_position_ids, first_position, max_length;
  int32_t max_rows; /* of any kind: keeps every index of a kernel below 2^31 */
  bool takes_types, takes_positions;
} plan_table;

/* generated */
extern const plan_table intformer_plan;
extern const intformer_api intformer_table;
extern const unsigned char intformer_blob[];

/* Where a one-line message goes, or nowhere. */
typedef struct {
  char *text;
  size_t size;
} message;

/* runtime.c */
const void *if_section(const char *name, size_t *size);
const char *if_section_name(size_t index);
size_t if_output_size(const intformer_input *input);
int if_run(const intformer_input *input, int32_t *out, size_t out_len, char *err, size_t err_len);
const char *if_variant(void);
int if_set_variant(const char *name, char *err, size_t err_len);
const char *if_device(void);
/* from the rows of the output buffer to the caller's */
void if_copy_output(const intformer_input *in, const int32_t *from, int32_t *out);
int if_no_memory(message err, const intformer_input *in, const char *where);

/* input.c */
__attribute__((format(printf, 3, 4))) int if_fail(message err, int code, const char *format, ...);
int64_t if_rows(const intformer_input *in, enum rows rows);
int if_check_counts(message err, const intformer_input *in);
int if_check_pointers(message err, const intformer_input *in); /* once the counts are sound */
/* Copies the inputs to data, checks the copies, so that nobody can change them between check and
 * use, and counts positions where there are none. */
int if_take_inputs(message err, const intformer_input *in, int32_t *const data[INPUTS]);

/* host.c, or cuda.c and cuda_kernels.c: where the steps run. Each returns INTFORMER_OK, or a code
 * and the reason. */
void if_set_up(void); /* once, before the first if_usable() */
int if_check_process(message why); /* this process may run the library, whatever it forked from */
int if_usable(message why, const plan_variant *variant); /* the variant runs here */
int if_execute(message err, const plan_variant *variant, const intformer_input *in, int32_t *out);
const char *if_device_name(void); /* of the GPU; NULL on a CPU */

/* A piece of work in `num_task` tasks, as TVM's kernels have it: not 0 where it failed. */
typedef struct {
  void *sync_handle;
  int32_t num_task;
} parallel_env;
typedef int (*parallel_fn)(int task, parallel_env *env, void *data);

/* pool.c, or cuda_kernels.c */
int if_set_threads(int threads);
int if_get_threads(void);
int if_run_alone(int alone);
void if_parallel(parallel_fn fn, void *data); /* does all tasks of work that cannot fail */

/* crc.c */
void if_checksums(const void *data, size_t size, size_t part, uint32_t *crcs);
/* The register of a CRC-32 after more bytes, by instructions that crc.c looks for. */
uint32_t if_crc_instructions(uint32_t crc, const void *data, size_t size);

/* host.c: the child of a fork can compute from here on. False: there was no memory to see to it. */
bool if_survives_fork(void);

/* pool.c */
void if_pool_reset_after_fork(void);
int if_prepare_thread(message err); /* before the kernels of a run: the calling thread's state */
int if_kernel_fault(const char **why); /* why a kernel of this thread failed: code and words */

/* cpu.c */
int if_usable_cpus(void); /* by affinity and cgroup quota, at least 1 */
/* NULL: this CPU runs the variant */
const plan_feature *if_missing_feature(const plan_variant *variant);
bool if_needs_tiles(const plan_variant *variant); /* it uses AMX */
int if_request_tiles(void); /* 0: this process may use AMX tiles; else the errno of the refusal */

#endif
