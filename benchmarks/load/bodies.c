/* Makes h2load send a body and a header of its own with each request, and read the status of each gRPC answer. Loaded by LD_PRELOAD.

   h2load sends one file with every request, and takes every HTTP status 200 for a success; gRPC says in a trailer how a
   call ended. It uses libnghttp2 for all that, so this stands between the two:

   - BENCH_BODIES names a file of gRPC messages, one after the other, each with its prefix (a byte for the compression, four
     for the length). Each request gets the next one. After the last comes the first again, which is counted.
   - BENCH_HEADERS, where it is set, names a file of headers, each a line as in "name: value". Each request gets the next
     one, and after the last the first again.
   - At the end, BENCH_REPORT gets one line: the calls that ended with status 0, those that ended otherwise, the status of
     the first of those (-1 without one), and how often the bodies began again.

   The few types of libnghttp2 are declared here, so that its header files need not be installed. Its ABI is stable. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>

enum { PREFIX = 5, MAX_HEADERS = 64, MAX_LINES = 65536, DATA_FLAG_EOF = 1, ERR_CALLBACK = -902 };

typedef struct {
  uint8_t *name, *value;
  size_t name_length, value_length;
  uint8_t flags;
} header;

typedef union {
  int fd;
  void *ptr;
} data_source;

typedef ssize_t (*read_callback)(void *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                                 data_source *source, void *user_data);

typedef struct {
  data_source source;
  read_callback read;
} data_provider;

typedef int32_t (*submit_function)(void *session, const void *priority, const header *headers, size_t count,
                                   const data_provider *provider, void *stream_user_data);
typedef int (*header_callback)(void *session, const void *frame, const uint8_t *name, size_t name_length,
                               const uint8_t *value, size_t value_length, uint8_t flags, void *user_data);
typedef void (*set_header_callback)(void *callbacks, header_callback callback);

/* What of a body is not sent yet. */
typedef struct {
  const uint8_t *at;
  size_t left;
} body;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const uint8_t *bodies;
static size_t bodies_length, next_body;
static long ok, failed, first_failure = -1, begun_again;
static header own_headers[MAX_LINES];
static size_t own_headers_count, next_header;
static header_callback on_header_of_h2load;

static void die(const char *what) {
  perror(what);
  exit(70);
}

static void *original(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (found == NULL) {
    fprintf(stderr, "libnghttp2 has no %s\n", name);
    exit(70);
  }
  return found;
}

__attribute__((constructor)) static void open_bodies(void) {
  const char *path = getenv("BENCH_BODIES");
  if (path == NULL) return;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) die(path);
  bodies_length = (size_t)status.st_size;
  bodies = mmap(NULL, bodies_length, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
  if (bodies == MAP_FAILED) die(path);
}

__attribute__((constructor)) static void open_headers(void) {
  const char *path = getenv("BENCH_HEADERS");
  if (path == NULL) return;
  FILE *file = fopen(path, "r");
  if (file == NULL) die(path);
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  for (; (length = getline(&line, &size, file)) > 0; line = NULL, size = 0) {
    if (line[length - 1] == '\n') line[--length] = 0;
    char *colon = strstr(line, ": ");
    if (colon == NULL || own_headers_count == MAX_LINES) {
      fprintf(stderr, "%s: no header, or too many: %s\n", path, line);
      exit(70);
    }
    char *value = colon + 2;
    own_headers[own_headers_count++] = (header){.name = (uint8_t *)line,
                                                .value = (uint8_t *)value,
                                                .name_length = (size_t)(colon - line),
                                                .value_length = (size_t)(line + length - value)};
  }
  if (fclose(file) != 0 || own_headers_count == 0) die(path);
}

__attribute__((destructor)) static void report(void) {
  const char *path = getenv("BENCH_REPORT");
  if (path == NULL) return;
  FILE *file = fopen(path, "w");
  if (file == NULL) die(path);
  fprintf(file, "%ld %ld %ld %ld\n", ok, failed, first_failure, begun_again);
  if (fclose(file) != 0) die(path);
}

static void take(body *taken) {
  pthread_mutex_lock(&lock);
  if (next_body >= bodies_length) {
    next_body = 0;
    begun_again++;
  }
  const uint8_t *at = bodies + next_body;
  uint32_t length;
  memcpy(&length, at + 1, sizeof length);
  taken->at = at;
  taken->left = PREFIX + (size_t)__builtin_bswap32(length);
  next_body += taken->left;
  pthread_mutex_unlock(&lock);
}

static ssize_t read_body(void *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                         data_source *source, void *user_data) {
  (void)session, (void)stream, (void)user_data;
  body *it = source->ptr;
  size_t size = it->left < length ? it->left : length;
  memcpy(buffer, it->at, size);
  it->at += size;
  it->left -= size;
  if (it->left == 0) {
    *flags |= DATA_FLAG_EOF;
    free(it);
  }
  return (ssize_t)size;
}

static int32_t submit(submit_function function, void *session, const void *priority, const header *headers, size_t count,
                      const data_provider *provider, void *stream_user_data) {
  if (bodies == NULL || provider == NULL) return function(session, priority, headers, count, provider, stream_user_data);
  if (count > MAX_HEADERS) return ERR_CALLBACK;
  /* The length that h2load would tell is that of its file. */
  header kept[MAX_HEADERS];
  size_t kept_count = 0;
  for (size_t n = 0; n < count; n++)
    if (headers[n].name_length != 14 || memcmp(headers[n].name, "content-length", 14) != 0) kept[kept_count++] = headers[n];
  if (own_headers_count > 0) {
    if (kept_count == MAX_HEADERS) return ERR_CALLBACK;
    pthread_mutex_lock(&lock);
    kept[kept_count++] = own_headers[next_header++ % own_headers_count];
    pthread_mutex_unlock(&lock);
  }
  body *own = malloc(sizeof *own);
  if (own == NULL) die("malloc");
  take(own);
  data_provider ours = {.source = {.ptr = own}, .read = read_body};
  return function(session, priority, kept, kept_count, &ours, stream_user_data);
}

int32_t nghttp2_submit_request(void *session, const void *priority, const header *headers, size_t count,
                               const data_provider *provider, void *stream_user_data) {
  static submit_function function;
  if (function == NULL) function = original("nghttp2_submit_request");
  return submit(function, session, priority, headers, count, provider, stream_user_data);
}

/* Newer ones call this: the same but for the name of a type. */
int32_t nghttp2_submit_request2(void *session, const void *priority, const header *headers, size_t count,
                                const data_provider *provider, void *stream_user_data) {
  static submit_function function;
  if (function == NULL) function = original("nghttp2_submit_request2");
  return submit(function, session, priority, headers, count, provider, stream_user_data);
}

static int on_header(void *session, const void *frame, const uint8_t *name, size_t name_length, const uint8_t *value,
                     size_t value_length, uint8_t flags, void *user_data) {
  if (name_length == 11 && memcmp(name, "grpc-status", 11) == 0) {
    pthread_mutex_lock(&lock);
    if (value_length == 1 && value[0] == '0') {
      ok++;
    } else if (failed++ == 0) {
      char digits[8] = {0};
      memcpy(digits, value, value_length < 7 ? value_length : 7);
      first_failure = strtol(digits, NULL, 10);
    }
    pthread_mutex_unlock(&lock);
  }
  return on_header_of_h2load(session, frame, name, name_length, value, value_length, flags, user_data);
}

void nghttp2_session_callbacks_set_on_header_callback(void *callbacks, header_callback callback) {
  on_header_of_h2load = callback;
  ((set_header_callback)original("nghttp2_session_callbacks_set_on_header_callback"))(callbacks, on_header);
}
