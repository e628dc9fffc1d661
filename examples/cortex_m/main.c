/* A model on a microcontroller without an operating system: one sequence, its first numbers.
 *
 *   intformer compile SRC -o libmodel.a --static --target cortex-m --max-tokens 64
 *   zig cc -target thumb-freestanding-gnueabi -mcpu=cortex_m4 -O2 -fno-builtin -c main.c startup.c
 *   zig ld.lld -T board.ld main.o startup.o libmodel.a -o main.elf
 *   qemu-system-arm -machine mps2-an386 -nographic -monitor none -serial none \
 *     -semihosting-config enable=on,target=native -kernel main.elf
 *
 * arm-none-eabi-gcc -mcpu=cortex-m4 does as well. For another board write another board.ld. */
#include "model.h"

void say(const char *text); /* startup.c */
size_t stack_used(void);

static _Alignas(MODEL_ARENA_ALIGN) unsigned char arena[MODEL_ARENA_BYTES];
static int32_t out[MODEL_MAX_OUTPUT];

static void say_number(int32_t number) {
  char text[16], *at = text + sizeof text - 1;
  uint32_t rest = number < 0 ? 0u - (uint32_t)number : (uint32_t)number;
  *at = 0;
  do {
    *--at = (char)('0' + rest % 10);
    rest /= 10;
  } while (rest);
  if (number < 0) *--at = '-';
  *--at = ' ';
  say(at);
}

int main(void) {
  static const int32_t ids[] = {1, 2, 3, 4}, offsets[] = {0, 4}, wanted[] = {0};
  model_input input = {.num_tokens = 4, .batch = 1, .input_ids = ids, .cu_seqlens = offsets};
  if (MODEL_MAX_POSITIONS) input.num_positions = 1, input.positions = wanted;
  int code = model_run(&input, arena, sizeof arena, out, MODEL_MAX_OUTPUT);
  if (code) {
    say(model_message(code));
    return 1;
  }
  say("numbers:");
  for (size_t i = 0; i < model_output_size(&input) && i < 8; i++) say_number(out[i]);
  say("\nbytes of stack:");
  say_number((int32_t)stack_used());
  say("\n");
  return 0;
}
