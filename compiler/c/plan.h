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
} plan_step;

typedef struct {
  uint64_t bytes[ROW_KINDS]; /* per block of rows; the slot holds the largest of the three */
} plan_slot;

typedef struct {
  const char *name;
  uint64_t offset, size; /* in the blob */
} plan_section;

typedef struct {
  const char *name;
  uint32_t leaf, subleaf;
  int32_t reg, bit; /* reg 0..3: eax, ebx, ecx, edx */
  uint32_t xcr0; /* state the operating system must save */
} plan_feature;

/* The kernels for one kind of chip. All variants compute the same numbers in the same memory. */
typedef struct {
  const char *name;
  const kernel_fn *kernels; /* of each step */
  const plan_feature *features;
  int32_t num_features;
} plan_variant;

typedef struct {
  const plan_tensor *tensors;
  int32_t num_tensors;
  const plan_step *steps;
  int32_t num_steps;
  const int32_t *args;
  int32_t num_args;
  const int32_t *outputs;
  const plan_slot *slots;
  int32_t num_slots;
  const plan_section *sections;
  int32_t num_sections;
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

/* runtime.c */
const void *if_section(const char *name, size_t *size);
const char *if_section_name(size_t index);
size_t if_output_size(const intformer_input *input);
int if_run(const intformer_input *input, int32_t *out, size_t out_len, char *err, size_t err_len);
const char *if_variant(void);
int if_set_variant(const char *name, char *err, size_t err_len);

/* pool.c */
void if_pool_reset_after_fork(void);
int if_set_threads(int threads);
int if_get_threads(void);
const char *if_kernel_message(void); /* of the calling thread, set by a kernel that failed */
void if_clear_kernel_message(void);

/* cpu.c */
int if_usable_cpus(void); /* by affinity and cgroup quota, at least 1 */
/* NULL: this CPU runs the variant */
const plan_feature *if_missing_feature(const plan_variant *variant);
bool if_needs_tiles(const plan_variant *variant); /* it uses AMX */
int if_request_tiles(void); /* 0: this process may use AMX tiles; else the errno of the refusal */

#endif
