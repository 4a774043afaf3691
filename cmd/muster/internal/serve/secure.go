package serve

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/seal"
)

// identityFile holds a daemon's key and certificate, in its directory.
const identityFile = "identity.pem"

// authorityFlags are apid's settings of the cluster's own authority.
type authorityFlags struct {
	keyFile  string
	lifetime time.Duration
	check    time.Duration
	allow    []string
}

func (f *authorityFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.keyFile, "cluster-key-file", "", "file with the key that seals secrets and the cluster's own certificate authority; muster init creates both. Several keys, one per line, while the key is being replaced")
	fs.DurationVar(&f.lifetime, "certificate-lifetime", ca.DefaultLifetime, "lifetime of certificates that the cluster's own authority issues; they are renewed automatically")
	fs.DurationVar(&f.check, "authority-check-interval", ca.DefaultCheckInterval, "how often daemons and workers ask whether the root of the cluster's own authority has changed")
	fs.StringSliceVar(&f.allow, "allow-certificate-host", nil, "DAEMON=HOST: a name or IP address that the cluster's own authority may put into certificates of that manager daemon, if it asks for it (--certificate-host); without it a daemon that joins gets its own name alone, such as schedulerd")
}

// given tells whether certificates come from the cluster's own authority.
func (f *authorityFlags) given() bool { return f != nil && f.keyFile != "" }

// addOpener adds a dispatcher's setting of the cluster's keys.
func addOpener(fs *pflag.FlagSet, keyFile *string) {
	fs.StringVar(keyFile, "cluster-key-file", "", "file with the key that opens secrets and environments for workers, the same as apid's. Several keys, one per line, while the key is being replaced")
}

// loadKeys returns the cluster's keys; nil if no file is given.
func loadKeys(file string) (*seal.Keyring, error) {
	if file == "" {
		return nil, nil
	}
	keys, err := seal.LoadKeys(file)
	if err != nil {
		return nil, fmt.Errorf("--cluster-key-file: %w", err)
	}
	return keys, nil
}

// open returns the authority; nil if certificates come from elsewhere.
func (f *authorityFlags) open(s *daemon.Settings, keys *seal.Keyring, store kv.KV, log *zap.Logger) (*ca.Authority, error) {
	if !f.given() {
		return nil, nil
	}
	if s.TLS.CertFile != "" || s.Join.Wanted() {
		return nil, &cli.UsageError{Err: fmt.Errorf("--cluster-key-file: apid issues itself a certificate, and needs neither --tls-cert-file nor --join")}
	}
	if f.lifetime < ca.MinLifetime {
		return nil, &cli.UsageError{Err: fmt.Errorf("--certificate-lifetime: %v is less than %v", f.lifetime, ca.MinLifetime)}
	}
	if f.check < time.Second {
		return nil, &cli.UsageError{Err: fmt.Errorf("--authority-check-interval: %v is less than %v", f.check, time.Second)}
	}
	allowed, err := ca.ParseAllowedHosts(f.allow)
	if err != nil {
		return nil, &cli.UsageError{Err: fmt.Errorf("--allow-certificate-host: %w", err)}
	}
	return ca.New(ca.Config{KV: store, Prefix: s.Prefix, Keys: keys, Lifetime: f.lifetime, CheckInterval: f.check, AllowedHosts: allowed, Logger: log.Named("ca")})
}

// withCredentials runs a daemon with the credentials that its settings ask for,
// and keeps them fresh meanwhile.
func withCredentials(ctx context.Context, s *daemon.Settings, id auth.Identity, authority *ca.Authority, log *zap.Logger, work func(context.Context, daemon.Credentials) error) error {
	if authority == nil && !s.Join.Wanted() {
		creds, err := s.TLS.Credentials()
		if err != nil {
			return err
		}
		return daemon.RunTasks(ctx,
			daemon.Task{Name: "certificate", Run: func(ctx context.Context) error { return s.TLS.Reload(ctx, creds, log) }},
			daemon.Task{Run: func(ctx context.Context) error { return work(ctx, creds) }})
	}
	for _, h := range s.Join.Hosts {
		if err := ca.CheckHost(h); err != nil {
			return &cli.UsageError{Err: fmt.Errorf("--certificate-host: %w", err)}
		}
	}
	cfg := ca.RenewerConfig{Identity: id, Hosts: s.Join.Hosts, Logger: log.Named("ca")}
	var tasks []daemon.Task
	if authority != nil {
		cfg.Issuer, cfg.Hosts = ca.Local{Authority: authority}, hosts(s)
		tasks = append(tasks, daemon.Task{Name: "authority", Run: authority.Run})
	} else {
		if _, err := s.Join.ReadToken(); err != nil {
			return err
		}
		if s.Join.Dir != "" {
			cfg.Path = filepath.Join(s.Join.Dir, identityFile)
		}
		cfg.Issuer = &ca.Remote{Addresses: s.Join.Addresses, Token: s.Join.ReadToken, Name: id.Name, Dial: func(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
			return daemon.Dialer(creds)(address)
		}}
	}
	tasks = append(tasks, daemon.Task{Run: func(ctx context.Context) error {
		if authority != nil {
			if err := authority.Await(ctx); err != nil {
				return err
			}
		}
		keeper, err := ca.Join(ctx, cfg)
		if err != nil {
			return err
		}
		return daemon.RunTasks(ctx,
			daemon.Task{Name: "certificate", Run: keeper.Run},
			daemon.Task{Run: func(ctx context.Context) error { return work(ctx, daemon.Secured(keeper.Source())) }})
	}})
	return daemon.RunTasks(ctx, tasks...)
}

// hosts returns the names and addresses that apid is reached at, for programs that know
// servers by them: browsers, and curl. A name of this machine that no certificate can
// have is left out.
func hosts(s *daemon.Settings) []string {
	all := []string{"localhost", "127.0.0.1", "::1"}
	for _, address := range []string{s.Listen, s.Advertise, s.OpsListen} {
		h, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(h); err != nil || h == "" || ip != nil && (ip.IsUnspecified() || ip.IsLoopback()) {
			continue
		}
		all = append(all, h)
	}
	if name, err := os.Hostname(); err == nil {
		all = append(all, name)
	}
	all = slices.DeleteFunc(all, func(h string) bool { return ca.CheckHost(h) != nil })
	return append(all, s.Join.Hosts...)
}
