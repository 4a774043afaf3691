package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/daemon"
)

const (
	// freeAddress lets the system choose a port.
	freeAddress = "127.0.0.1:0"
	// replicaHeader names the daemon and its cluster in all answers of an operations port.
	replicaHeader = "Muster-Daemon"
	// replicaTimeout bounds how long a replica that has just been started may take to
	// answer.
	replicaTimeout = 5 * time.Second
)

// listening opens the listeners of one daemon.
type listening struct {
	daemon string
	// replica is what the operations port of each replica says in replicaHeader.
	replica string
	// ops is the default address of the daemon's operations, where another replica on
	// this machine answers.
	ops      string
	settings *daemon.Settings
	log      *zap.Logger
}

// newListening returns listening for a daemon whose cluster has an id by clusterID.
func newListening(name, cluster string, opsPort int, s *daemon.Settings, log *zap.Logger) *listening {
	return &listening{daemon: name, replica: name + " " + cluster, ops: fmt.Sprintf("127.0.0.1:%d", opsPort), settings: s, log: log}
}

// clusterID returns an id that the replicas of a cluster on one machine share, and that
// tells nothing else: a digest of their trust domain or, without TLS, of what they
// connect to, in any order.
func clusterID(creds daemon.Credentials, peers ...string) string {
	of := slices.Sorted(slices.Values(peers))
	if creds.Secure() {
		of = []string{creds.Domain()}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", of))
	return hex.EncodeToString(sum[:8])
}

// open opens the listener that a flag names. If the flag was not given, and another
// replica of the daemon on this machine uses the default port, a free port takes its
// place.
func (o *listening) open(ctx context.Context, flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return l, nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	given := o.settings.Given == nil || o.settings.Given(flag)
	switch {
	case given:
		return nil, fmt.Errorf("--%s: %w; give another port, or port 0 for any that is free", flag, err)
	case !o.replicaAnswers(ctx):
		return nil, fmt.Errorf("--%s: %w by something other than a replica of %s of this cluster (none answers at %s); give --%s another port, or port 0 for any that is free",
			flag, err, o.daemon, o.ops, flag)
	}
	if l, err = net.Listen("tcp", freeAddress); err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	o.log.Warn("default port is in use by another replica; listening on a free one",
		zap.String("flag", "--"+flag), zap.String("default", address), zap.String("address", l.Addr().String()))
	return l, nil
}

// replicaAnswers reports whether a replica of the daemon answers on this machine. It
// waits for one that opened its other listeners first.
func (o *listening) replicaAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	attempts := backoff.New(50*time.Millisecond, 500*time.Millisecond)
	for {
		resp, err := askOps(ctx, o.ops, "livez")
		if err == nil {
			_ = resp.Body.Close()
			// The previous version says the daemon only.
			replica := resp.Header.Get(replicaHeader)
			return replica == o.replica || replica == o.daemon
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || attempts.Wait(ctx) != nil {
			return false
		}
	}
}

// named has an operations port say which replica answers.
func named(replica string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(replicaHeader, replica)
		next.ServeHTTP(w, r)
	})
}
