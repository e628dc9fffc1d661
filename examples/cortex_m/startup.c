/* All that a program without an operating system needs on a Cortex-M: vectors, and what a C program
 * takes for granted. Text and the end of the program go to the debugger (semihosting). */
#include <stddef.h>
#include <stdint.h>

int main(void);

extern uint32_t bss_start[], bss_end[], stack_start[], stack_end[]; /* board.ld */

enum { SYS_WRITE0 = 4, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };
enum { UNUSED = 0xA5A5A5A5 };

static void ask_debugger(int what, const void *about) {
  register int number __asm__("r0") = what;
  register const void *argument __asm__("r1") = about;
  __asm__ volatile("bkpt 0xab" : "+r"(number) : "r"(argument) : "memory");
}

void say(const char *text) { ask_debugger(SYS_WRITE0, text); }

void leave(int code) {
  const int32_t about[2] = {APPLICATION_EXIT, code};
  ask_debugger(SYS_EXIT_EXTENDED, about);
  for (;;) {
  }
}

/* Bytes of the stack that were used since the start. */
size_t stack_used(void) {
  const uint32_t *at = stack_start;
  while (at < stack_end && *at == UNUSED) at++;
  return (size_t)((const char *)stack_end - (const char *)at);
}

void reset(void) {
  for (uint32_t *at = bss_start; at < bss_end; at++) *at = 0;
  uint32_t *here = __builtin_frame_address(0);
  for (uint32_t *at = stack_start; at < here - 64; at++) *at = UNUSED;
  leave(main());
}

static void fault(void) {
  say("fault\n");
  leave(3);
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    stack_end, reset, fault, fault, fault, fault, fault,
};

/* The two functions of the C library that a model needs. */
void *memcpy(void *to, const void *from, size_t count) {
  unsigned char *t = to;
  const unsigned char *f = from;
  while (count--) *t++ = *f++;
  return to;
}

void *memset(void *to, int value, size_t count) {
  unsigned char *t = to;
  while (count--) *t++ = (unsigned char)value;
  return to;
}
