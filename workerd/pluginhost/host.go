// Package pluginhost finds plugins, executors and network plugins, starts them as
// processes, and hands out what calls them.
//
// A plugin is an executable "muster-executor-<name>" or "muster-network-<name>" in one of
// the plugin directories. Its process is disposable: it is started when it is first
// needed, and again, with growing pauses, when it has ended. Its tasks run on
// meanwhile; calls that come then wait for a moment, and after that fail with
// an error that is temporary. What is wrong with one plugin is reported of that
// plugin and troubles no other.
//
// Each process has a scrubbed environment, a socket in a private directory,
// mutual TLS with keys made for it alone, and a state directory of its own. If
// a checksum is pinned to its name, its file must have it. A plugin whose file is
// replaced is started again from the new one.
package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/musterhq/muster/workerd/executor"
)

// Env is what a host is given to work with.
type Env struct {
	Logger *zap.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Config says which plugins to host, and how.
type Config struct {
	// Dirs are searched for plugins. A name that is in several of them is
	// taken from the first. They are searched again from time to time.
	Dirs []string
	// Commands are further executors by name, each a path and arguments, and
	// NetworkCommands are further network plugins. They come before those of the same
	// name in Dirs.
	Commands, NetworkCommands map[string][]string
	// Checksums pins plugins to the SHA-256 of their files, in hexadecimal: executors by
	// name, network plugins by the name of the file. A plugin with another is refused.
	Checksums map[string]string
	// ChecksumFile pins plugins by a file of checksums as sha256sum writes it. No
	// plugin runs that is not in it. It is read again when it changes, so that a
	// plugin can be upgraded while the worker runs. Empty: there is none.
	ChecksumFile string
	// StateDir holds a directory for each executor, in which it may keep what
	// must outlive it, and the sockets of all plugins, if its path is short enough for
	// that. NetworkStateDir is the same for network plugins. Empty: plugins are told of
	// none. One host at a time can use them.
	StateDir, NetworkStateDir string
	// PassEnv names variables of the worker's environment that plugins get,
	// beside those of [DefaultConfig].
	PassEnv []string
	// MachinePID makes network plugins work in the network of this process, the machine's,
	// and not in the worker's. 0: in the worker's.
	MachinePID int
	// StartTimeout bounds the time from start to handshake. Longer is kinder
	// to slow machines; until it is over, tasks wait for a plugin that hangs.
	StartTimeout time.Duration
}

// DefaultConfig returns the settings that need no change.
func DefaultConfig() Config {
	return Config{StartTimeout: 10 * time.Second}
}

// passedEnv are the variables that any plugin may need to find its programs,
// its proxy and the services that it speaks to.
var passedEnv = []string{
	"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR",
	"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION", "DOCKER_CONFIG", "MUSTER_DOCKER_POOL",
	"CNI_PATH", "NETCONFPATH", "MUSTER_NETWORK_ENCRYPTED_PORT", "MUSTER_NETWORK_KEY_INTERVAL",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// Host hosts the plugins of a worker.
type Host struct {
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	// changes receives by kind, and has room for one each.
	changes map[*kind]chan struct{}
	// searched is closed when the directories were searched for the first time.
	searched chan struct{}

	mu sync.Mutex
	// sockets is the directory for the plugins' sockets.
	sockets string
	plugins []*plugin
	// pins is what is pinned, and pinned the file of checksums that says it.
	pins       pins
	pinned     []byte
	pinsFailed bool
	once       sync.Once

	// living guards the goroutines of Run.
	living sync.Mutex
	run    context.Context
	closed bool
	wg     sync.WaitGroup
}

var _ executor.Set = (*Host)(nil)

// New checks the settings and starts nothing.
func New(env Env, cfg Config) (*Host, error) {
	var errs []error
	if cfg.StartTimeout <= 0 {
		errs = append(errs, fmt.Errorf("plugins: start timeout is %s; it must be longer than 0", cfg.StartTimeout))
	}
	for name, sum := range cfg.Checksums {
		if !isChecksum(sum) {
			errs = append(errs, fmt.Errorf("plugins: checksum of %s is %q; it must be 64 hexadecimal digits", name, sum))
		}
	}
	for _, commands := range []map[string][]string{cfg.Commands, cfg.NetworkCommands} {
		for name, command := range commands {
			if len(command) == 0 || !validName(name) {
				errs = append(errs, fmt.Errorf("plugins: command of %q is %q", name, command))
			}
		}
	}
	pins, pinned, err := loadPins(cfg)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Host{
		cfg: cfg, pins: pins, pinned: pinned, log: env.Logger, metrics: newMetrics(env.Metrics),
		changes:  map[*kind]chan struct{}{executorKind: make(chan struct{}, 1), networkKind: make(chan struct{}, 1)},
		searched: make(chan struct{}),
	}, nil
}

// Run hosts plugins until ctx ends, and then ends their processes. Nothing is
// started before it.
func (h *Host) Run(ctx context.Context) (err error) {
	sockets, remove, err := h.openSockets()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	h.mu.Lock()
	h.sockets = sockets
	h.mu.Unlock()
	h.living.Lock()
	h.run = ctx
	h.living.Unlock()
	h.search()
	ticker := time.NewTicker(searchEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ticker.C:
			h.search()
			h.renew()
		case <-ctx.Done():
		}
	}
	// Nothing is begun any more; what has been begun sees ctx.
	h.living.Lock()
	h.closed = true
	h.living.Unlock()
	h.wg.Wait()
	return ctx.Err()
}

// spawn runs f in a goroutine that Run waits for, and says whether it did.
func (h *Host) spawn(f func(ctx context.Context)) bool {
	h.living.Lock()
	defer h.living.Unlock()
	if h.run == nil || h.closed {
		return false
	}
	h.wg.Go(func() { f(h.run) })
	return true
}

// search looks for plugins in the directories. Plugins that are gone are
// forgotten once they do not run.
func (h *Host) search() {
	found := h.discover()
	h.mu.Lock()
	defer h.mu.Unlock()
	var kept []*plugin
	changed := map[*kind]bool{}
	for _, p := range h.plugins {
		if i := slices.IndexFunc(found, p.file.same); i >= 0 || p.busy() {
			if i >= 0 {
				p.moved(found[i])
			}
			kept = append(kept, p)
		} else {
			changed[p.file.kind] = true
			h.log.Info("plugin is gone", zap.String(p.file.kind.field, p.file.name))
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(kept, func(p *plugin) bool { return p.file.same(f) }) {
			kept = append(kept, newPlugin(h, f))
			changed[f.kind] = true
			h.log.Info("plugin found", zap.String(f.kind.field, f.name), zap.String("file", f.path))
		}
	}
	slices.SortFunc(kept, func(a, b *plugin) int { return strings.Compare(a.file.name, b.file.name) })
	h.plugins = kept
	h.once.Do(func() { close(h.searched) })
	for k := range changed {
		h.changed(k)
	}
}

// all returns the plugins of a kind, once they have been searched for.
func (h *Host) all(ctx context.Context, k *kind) ([]*plugin, error) {
	select {
	case <-h.searched:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.plugins), func(p *plugin) bool { return p.file.kind != k }), nil
}

// refreshed is all after another search.
func (h *Host) refreshed(ctx context.Context, k *kind) ([]*plugin, error) {
	select {
	case <-h.searched:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h.search()
	return h.all(ctx, k)
}

// For returns the executor that runs a kind of runtime.
func (h *Host) For(ctx context.Context, kind, holder string) (*executor.Described, error) {
	plugins, err := h.all(ctx, executorKind)
	if err != nil {
		return nil, err
	}
	if holder != "" {
		i := slices.IndexFunc(plugins, func(p *plugin) bool { return p.file.name == holder })
		if i < 0 {
			return nil, executor.NoHolder(holder)
		}
		return plugins[i].firstDescribed(ctx)
	}
	var unhealthy *executor.Described
	for _, p := range plugins {
		switch d := p.described(); {
		case !d.Runs(kind):
		case d.Healthy():
			return d, nil
		case unhealthy == nil:
			unhealthy = d
		}
	}
	// One that never said what it runs may be the one.
	return firstThatRuns(ctx, plugins, kind, unhealthy)
}

// firstThatRuns asks all executors what they are. The first that comes up and runs the kind
// is taken, whichever others hang. Without a healthy one it takes an unhealthy one.
func firstThatRuns(ctx context.Context, plugins []*plugin, kind string, unhealthy *executor.Described) (*executor.Described, error) {
	// Those that are still asked in the end need not answer.
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		described *executor.Described
		err       error
	}
	answers := make(chan answer, len(plugins))
	for _, p := range plugins {
		asking.Go(func() {
			d, err := p.firstDescribed(ctx)
			answers <- answer{d, err}
		})
	}
	var unknown []error
	for range plugins {
		select {
		case a := <-answers:
			switch {
			case a.err != nil:
				unknown = append(unknown, a.err)
			case !a.described.Runs(kind):
			case a.described.Healthy():
				return a.described, nil
			case unhealthy == nil:
				unhealthy = a.described
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case unhealthy != nil:
		return unhealthy, nil
	case len(unknown) == 0:
		return nil, executor.NoExecutor(kind)
	}
	return nil, &executor.Error{
		Code: codes.Unavailable, Temporary: true, BlameNode: true,
		Err: fmt.Errorf("no executor that is up runs %q: %w", kind, errors.Join(unknown...)),
	}
}

// Describe asks all executors what they are, and starts those that do not run.
func (h *Host) Describe(ctx context.Context) []*executor.Described {
	return describe(ctx, h, executorKind, (*plugin).described)
}

// describe asks all plugins of a kind what they are, and starts those that do not run.
func describe[D any](ctx context.Context, h *Host, k *kind, described func(*plugin) D) []D {
	plugins, err := h.refreshed(ctx, k)
	if err != nil {
		return nil
	}
	all := make([]D, len(plugins))
	var wg sync.WaitGroup
	for i, p := range plugins {
		wg.Go(func() {
			p.ask(ctx)
			all[i] = described(p)
		})
	}
	wg.Wait()
	return all
}

// Changes receives when an executor was found, has come up, or has ended.
func (h *Host) Changes() <-chan struct{} { return h.changes[executorKind] }

// changed wakes the listener to plugins of a kind.
func (h *Host) changed(k *kind) {
	select {
	case h.changes[k] <- struct{}{}:
	default:
	}
}
