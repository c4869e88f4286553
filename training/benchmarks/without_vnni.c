/* Hides AVX-512, AMX and VNNI from a process, as if the processor had AVX2 alone: `backends.py --no-vnni`.

   CPUID is made to fault (Linux on Intel's processors, or a virtual machine that passes this on: `cpuid_fault` in
   /proc/cpuinfo), and the fault is answered with the processor's own facts less these. Threads inherit it, and the same
   LD_PRELOAD hides them from programs that are started. The bits are those of Intel's manual, volume 2, CPUID, leaf 7. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <cpuid.h>

static void answer(int sig, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	const unsigned char *code = (const unsigned char *)regs[REG_RIP];
	unsigned leaf = regs[REG_RAX], sub = regs[REG_RCX], a, b, c, d;

	if (code[0] != 0x0f || code[1] != 0xa2) { /* another fault: as without this handler */
		signal(sig, SIG_DFL);
		return;
	}
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
	__cpuid_count(leaf, sub, a, b, c, d);
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
	if (leaf == 7 && sub == 0) {
		b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
		c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
		d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
	} else if (leaf == 7 && sub == 1) {
		a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
		d &= ~(1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19);
	}
	regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;
	regs[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void)
{
	struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigaction(SIGSEGV, &action, NULL);
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
}
