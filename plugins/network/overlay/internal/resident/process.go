//go:build linux

// Package resident is the part of the network plugin that is needed at any time: a process
// that answers tasks' questions for names, and outlives the plugin and the worker.
//
// The plugin starts it with the first network of the node, and tells it over a socket what
// it tells the kernel. The process writes that down, so that one that is started again
// answers at once. A plugin that is started again continues with the process that it finds.
// If that runs another program, it is replaced: the new process gets the open sockets, so
// that no question is lost. The process ends with the last network, and when its directory
// is gone.
package resident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/internal/durable"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// OwnSpace is the path of the network namespace of the process.
const OwnSpace = "/proc/thread-self/ns/net"

// Config is what a process is given.
type Config struct {
	// Dir is the directory of the process: its sockets, journal and log.
	Dir string
	// Host, Namespaces and Machine are those of the plugin's configuration.
	Host, Namespaces, Machine string
	// Resolvers is the file with the node's resolvers. Empty: /etc/resolv.conf.
	Resolvers string
}

// The files in the directory of the process.
const (
	journalFile    = "journal"
	controlSocket  = "control"
	handoverSocket = "handover"
	logFile        = "log"
	lockFile       = "lock"
)

// argument makes the plugin's program this process.
const argument = "serve-names"

// readyFD is the descriptor at which the process says that it answers.
const readyFD = 3

const (
	// emptyTime is how long a process that knows no network waits for one.
	emptyTime = time.Minute
	// maxLog is the size of a log in bytes that a process empties when it starts.
	maxLog = 1 << 20
	// checkTime is how often it is looked whether the directory is still that of the process.
	checkTime = time.Second
)

func (c Config) path(name string) string { return filepath.Join(c.Dir, name) }

// identity tells apart what processes run and how.
func (c Config) identity() (string, error) {
	var program unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &program); err != nil {
		return "", fmt.Errorf("look at the program: %w", err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	sum := fnv.New64a()
	_, _ = sum.Write(text)
	// Inodes are used again, but not while a process runs them.
	return fmt.Sprintf("%d:%d:%x", program.Dev, program.Ino, sum.Sum64()), nil
}

// Main makes this process the one that serves if its arguments say so, and does not
// return then.
func Main(args []string, log *zap.Logger) {
	if len(args) != 3 || args[1] != argument {
		return
	}
	var config Config
	err := json.Unmarshal([]byte(args[2]), &config)
	if err == nil {
		err = run(config, log)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "muster-network-overlay: serve names: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(config Config, log *zap.Logger) error {
	unix.CloseOnExec(readyFD)
	if info, err := os.Stderr.Stat(); err == nil && info.Size() > maxLog {
		_ = os.Stderr.Truncate(0)
	}
	ready := os.NewFile(readyFD, "ready")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	// One process starts at a time.
	lock, err := os.OpenFile(config.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", config.Dir, err)
	}
	s, err := newService(config, log)
	if err != nil {
		return err
	}
	server := networksdk.NewServer(s)
	sockets, confirm, err := takeOver(ctx, config.Dir)
	if err != nil {
		// They are opened again if they can be.
		log.Warn("failed to take over from the process before", zap.Error(err))
		confirm = func() error { return nil }
	}
	if err := s.load(ctx, server); err != nil {
		log.Warn("failed to read all of the journal", zap.Error(err))
	}
	s.serve(sockets)
	control, err := durable.Listen(config.Dir, controlSocket, "unix")
	if err != nil {
		return err
	}
	handover, err := durable.Listen(config.Dir, handoverSocket, "unixpacket")
	if err != nil {
		return err
	}
	if err := confirm(); err != nil {
		log.Warn("failed to confirm that sockets are taken over", zap.Error(err))
	}
	if err := lock.Close(); err != nil {
		return err
	}
	_, err = ready.WriteString("ready")
	if err = errors.Join(err, ready.Close()); err != nil {
		log.Warn("failed to tell the plugin that names are served", zap.Error(err))
	}
	return s.run(ctx, server, control, handover)
}

// errEnd ends the parts of a process.
var errEnd = errors.New("the process ends")

// run serves until there is no network left, until another process has taken over, or
// until the directory is gone.
func (s *service) run(ctx context.Context, server networkv1.NetworkServiceServer, control, handover *net.UnixListener) error {
	group, ctx := errgroup.WithContext(ctx)
	rpc := grpc.NewServer(grpc.MaxRecvMsgSize(networksdk.MaxRequest))
	networkv1.RegisterNetworkServiceServer(rpc, server)
	group.Go(func() error { return rpc.Serve(control) })
	group.Go(func() error { return s.handOvers(handover) })
	group.Go(func() error { return s.untilUnneeded(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		// A call that says that the last network is gone is answered first.
		rpc.GracefulStop()
		_ = handover.Close()
		return nil
	})
	err := group.Wait()
	s.retire()
	if s.succeeded.Load() {
		s.relays.open.Wait()
	}
	if errors.Is(err, errEnd) || ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// handOvers gives the sockets to the first process that takes them.
func (s *service) handOvers(listener *net.UnixListener) error {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return err
		}
		if err = s.handOver(conn); err == nil {
			s.succeeded.Store(true)
			s.retire()
		}
		_ = conn.Close()
		if err == nil {
			return errEnd
		}
		s.log.Warn("failed to hand over sockets", zap.Error(err))
	}
}

// untilUnneeded returns when nothing needs the process any longer.
func (s *service) untilUnneeded(ctx context.Context) error {
	own, err := os.Stat(s.config.path(controlSocket))
	if err != nil {
		return err
	}
	check := time.NewTicker(checkTime)
	defer check.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return errEnd
		case <-s.idle:
			return errEnd
		case <-check.C:
		}
		if now, err := os.Stat(s.config.path(controlSocket)); err != nil || !os.SameFile(own, now) {
			return errEnd
		}
		if time.Since(began) > emptyTime {
			s.mu.Lock()
			if len(s.networks) == 0 {
				s.finish()
			}
			s.mu.Unlock()
		}
	}
}

// finish makes the process end. It removes what the process keeps in its directory, so
// that the next process finds nothing. The lock stays: another process may hold it.
func (s *service) finish() {
	select {
	case s.idle <- struct{}{}:
	default:
		return
	}
	s.serving = false
	s.journal.drop()
	for _, name := range []string{controlSocket, handoverSocket, logFile} {
		_ = os.Remove(s.config.path(name))
	}
}
