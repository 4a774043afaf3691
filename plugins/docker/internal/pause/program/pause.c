// The pause program: the only process of a container that holds the network namespace
// of a task. It writes the task's resolv.conf and hosts file, which Docker shares between
// the containers of a namespace, and otherwise sleeps.
//
// It reads records from its standard input:
//
//	0x00 resolv.conf 0x01 hosts 0x01 token 0x02
//
// and answers each on standard output with its token when both files are written. 0x00
// starts a record wherever it comes, so that a record that was cut off changes nothing.
// A file for which the record has nothing stays as it is.
// It uses no library; see build.sh.

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, OPENAT = 257, CLOSE = 3, PPOLL = 271, EXIT = 60 };
static long call(long n, long a, long b, long c, long d) {
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 0;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, OPENAT = 56, CLOSE = 57, PPOLL = 73, EXIT = 93 };
static long call(long n, long a, long b, long c, long d) {
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}
#endif

enum { AT_FDCWD = -100, O_WRONLY = 1, O_TRUNC = 01000, SIZE = 1 << 18 };

static char record[SIZE];

// put writes all bytes. It reports whether that worked.
static int put(long fd, const char *data, long size) {
	while (size > 0) {
		long n = call(WRITE, fd, (long)data, size, 0);
		if (n <= 0)
			return 0;
		data += n;
		size -= n;
	}
	return 1;
}

static int replace(const char *path, const char *data, long size) {
	if (size == 0)
		return 1;
	long fd = call(OPENAT, AT_FDCWD, (long)path, O_WRONLY | O_TRUNC, 0);
	if (fd < 0)
		return 0;
	int done = put(fd, data, size);
	call(CLOSE, fd, 0, 0, 0);
	return done;
}

// apply does what a complete record says. It answers nothing if that fails.
static void apply(long size) {
	long parts[2], found = 0;
	for (long i = 0; i < size; i++)
		if (record[i] == 1 && found < 2)
			parts[found++] = i;
	if (found == 2 && replace("/etc/resolv.conf", record, parts[0]) &&
	    replace("/etc/hosts", record + parts[0] + 1, parts[1] - parts[0] - 1))
		put(1, record + parts[1] + 1, size - parts[1] - 1);
}

void _start(void) {
	static char input[4096];
	long size = -1; // of the record so far; -1 between records
	for (;;) {
		long n = call(READ, 0, (long)input, sizeof input, 0);
		if (n <= 0)
			break;
		for (long i = 0; i < n; i++) {
			char c = input[i];
			if (c == 0)
				size = 0;
			else if (size < 0)
				continue;
			else if (c == 2) {
				apply(size);
				size = -1;
			} else if (size < SIZE)
				record[size++] = c;
			else
				size = -1;
		}
	}
	// No more input: sleep until killed.
	for (;;)
		call(PPOLL, 0, 0, 0, 0);
}
