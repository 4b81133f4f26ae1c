/* The web server of the zero-loss suite, `server PORT MILLISECONDS`: it takes that long until it
 * listens, as most servers do. It answers each request with the path that was asked for and its own
 * host name, and ends politely: after SIGTERM
 * every answer says `Connection: close`, and it exits when its last connection is closed. It serves
 * 1000 connections at once and refuses requests of more than 4 KiB. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 1000
#define REQUEST_MAX 4096

static volatile sig_atomic_t draining;
static struct pollfd watched[CONNECTIONS_MAX + 1]; /* the first one is the listener */
static char requests[CONNECTIONS_MAX + 1][REQUEST_MAX + 1];
static size_t lengths[CONNECTIONS_MAX + 1];
static int count = 1;
static char name[256];

static void drain(int number) {
  (void)number;
  draining = 1;
}

static void drop(int index) {
  close(watched[index].fd);
  count--;
  watched[index] = watched[count];
  lengths[index] = lengths[count];
  memcpy(requests[index], requests[count], lengths[count] + 1);
}

/* Answers one request; 1: the connection stays. The answer fits into any socket's empty buffer. */
static int answer(int fd, const char *request) {
  char path[512], body[1024], message[1536];
  int closing = draining || strcasestr(request, "\nconnection: close") != NULL;
  if (sscanf(request, "GET %511s", path) != 1) return 0;
  int size = snprintf(body, sizeof body, "%s %s\n", path, name);
  int total = snprintf(message, sizeof message, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s",
                       size, closing ? "Connection: close\r\n" : "", body);
  return send(fd, message, total, MSG_NOSIGNAL) == total && !closing;
}

/* Reads what is there; 1: the connection stays. */
static int serve(int index) {
  size_t *length = &lengths[index];
  char *request = requests[index];
  ssize_t got = recv(watched[index].fd, request + *length, REQUEST_MAX - *length, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
  if (got <= 0) return 0;
  *length += got;
  request[*length] = 0;
  char *end = strstr(request, "\r\n\r\n");
  if (end == NULL) return *length < REQUEST_MAX;
  int stays = answer(watched[index].fd, request);
  *length -= end + 4 - request;
  memmove(request, end + 4, *length + 1);
  return stays;
}

static void welcome(void) {
  int one = 1, fd;
  while (count <= CONNECTIONS_MAX && (fd = accept(watched[0].fd, NULL, NULL)) >= 0) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watched[count].fd = fd;
    watched[count].events = POLLIN;
    watched[count].revents = 0;
    lengths[count++] = 0;
  }
}

int main(int argc, char **argv) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  struct sigaction action = {.sa_handler = drain};
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (argc != 3) return 2;
  address.sin_port = htons(atoi(argv[1]));
  usleep(atoi(argv[2]) * 1000);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
    perror("listen");
    return 1;
  }
  sigaction(SIGTERM, &action, NULL);
  gethostname(name, sizeof name - 1);
  watched[0].fd = listener;
  watched[0].events = POLLIN;
  /* A signal between the test and poll() is seen with the next timeout. */
  while (!draining || count > 1 || poll(watched, 1, 0) > 0) {
    if (poll(watched, count, 100) <= 0) continue;
    for (int index = count - 1; index > 0; index--)
      if (watched[index].revents && !serve(index)) drop(index);
    if (watched[0].revents) welcome();
  }
  return 0;
}
