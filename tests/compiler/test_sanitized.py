"""`make sanitize` finds what it is there for."""

import pytest

from intformer.link.elf import Elf
from intformer_testing import sanitized
from intformer_testing.c_program import run_c

BUGS = {
    "address": """
        int main(int argc, char **argv) {
          char *text = calloc((size_t)argc, 1);
          volatile int wrong = text[argc + (argv == NULL)];
          free(text);
          return wrong * 0;
        }
    """,
    "thread": """
        #include <pthread.h>
        static int shared;
        static void *work(void *unused) { shared++; return unused; }
        int main(void) {
          pthread_t thread;
          if (pthread_create(&thread, NULL, work, NULL)) return 2;
          shared++;
          return pthread_join(thread, NULL);
        }
    """,
}
SAYS = {"address": "heap-buffer-overflow", "thread": "data race"}
SYMBOL = {"address": "__asan_", "thread": "__tsan_"}


@pytest.mark.skipif(not sanitized.KIND, reason="only of use with SANITIZE")
def test_a_fault_is_found(tmp_path, toy_path):
    with pytest.raises(AssertionError) as caught:
        run_c(tmp_path, BUGS[sanitized.KIND])
    assert SAYS[sanitized.KIND] in str(caught.value)
    assert any(name.startswith(SYMBOL[sanitized.KIND]) for name in Elf(toy_path).symbols())
