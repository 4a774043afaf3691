// Package workerd is the agent: it runs the tasks that are assigned to its
// node, through executors, and reports what becomes of them.
//
// It owns the node's tasks and what is kept of them in its data directory:
//
//	node-id       who this node is
//	tasks.db      what it had begun (package taskdb)
//	executors/    what executors keep, one directory each
//	networks/     what network plugins keep, one directory each
//
// It reads nothing of the cluster but what its dispatcher says, and never
// touches the store. While no dispatcher answers it looks after its tasks all
// the same, and reports afterwards. When it is stopped, its tasks run on; when
// it starts again it finds them by what it kept, or else by what the executors
// hold.
package workerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/atomicfile"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/networks"
	"github.com/musterhq/muster/workerd/internal/session"
	"github.com/musterhq/muster/workerd/internal/tasks"
	"github.com/musterhq/muster/workerd/network"
	"github.com/musterhq/muster/workerd/pluginhost"
	"github.com/musterhq/muster/workerd/taskdb"
)

// Worker is one node.
type Worker struct {
	env Env
	cfg Config
	log *zap.Logger
	// nets, manager and client are nil until Run has made them.
	nets    atomic.Pointer[networks.Networks]
	manager atomic.Pointer[tasks.Manager]
	client  atomic.Pointer[session.Client]
}

// New checks the settings and starts nothing.
func New(env Env, cfg Config) (*Worker, error) {
	if env.Dial == nil {
		return nil, errors.New("worker: no way to dial")
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	log := env.Logger
	if log == nil {
		log = zap.NewNop()
	}
	return &Worker{env: env, cfg: cfg, log: log}, nil
}

// Run works until ctx ends, says goodbye to its dispatcher, and has then ended
// everything but the tasks.
func (w *Worker) Run(ctx context.Context) (err error) {
	id, err := w.cfg.EnsureNodeID()
	if err != nil {
		return err
	}
	base, err := w.describe(ctx)
	if err != nil {
		return err
	}
	log := w.log.With(zap.String("node", id))
	store, contents, err := w.open(log)
	if err != nil {
		return err
	}
	if store != nil {
		defer func() { err = errors.Join(err, store.Close()) }()
	}

	// The order matters at the end: the session says goodbye while tasks still run,
	// and the tasks release their plugins before these are stopped.
	var parts daemon.Runner
	executors, plugins, runPlugins, err := w.executors(log)
	if err != nil {
		return err
	}
	if runPlugins != nil {
		parts = append(parts, runPlugins)
	}
	var disk *disk
	var saved tasks.Store
	if store != nil {
		disk = newDisk(w.cfg.DataDir, w.cfg.DescribeInterval, log)
		saved = watchedStore{store, disk}
		parts = append(parts, []daemon.Task{{Name: "watch the disk", Run: disk.run}})
	}
	described := make(chan struct{}, 1)
	nets, err := w.networks(ctx, networks.Config{
		NodeID: id, Plugins: plugins, Interval: w.cfg.DescribeInterval, DataPathAddress: w.cfg.DataPathAddress, DataPathPort: w.cfg.dataPathPort(),
		Described: func() { notify(described) }, Logger: log.Named("networks"), Metrics: w.env.Metrics,
	}, store)
	if err != nil {
		return err
	}
	parts = append(parts, []daemon.Task{{Name: "keep networks", Run: func(ctx context.Context) error {
		// Tasks that run are served also while no dispatcher answers, and no name server.
		nets.SetAddress(dataPathAddress(nil, numeric(w.cfg.Dispatchers)))
		return nets.Run(ctx)
	}}})
	reports := session.NewReports()
	var kept tasks.Files
	taskFiles := w.openFiles(id, log)
	if taskFiles != nil {
		kept = taskFiles
	}
	manager := tasks.New(tasks.Config{
		NodeID: id, Executors: executors, Networks: nets, Store: saved, Changed: reports.Changed, Node: base, Files: kept,
		Logger: log.Named("tasks"), Metrics: w.env.Metrics, Tracer: w.env.Tracer,
	})
	patience := restore(manager, contents, log)
	describer := newDescriber(describerConfig{
		base: base, interval: w.cfg.DescribeInterval, patience: patience,
		executors: executors, networks: nets, described: described, disk: disk, files: taskFiles != nil, listener: manager.SetExecutors, log: log,
	})
	client := session.New(session.Config{
		NodeID: id, Instance: rand.Text(), Dispatchers: w.cfg.Dispatchers, Dial: w.env.Dial,
		Tasks: manager, Describer: describer, Reports: reports,
		Connected:      func(local net.Addr, dispatchers []string) { nets.SetAddress(dataPathAddress(local, dispatchers)) },
		Probe:          nets.Probe,
		Volumes:        volumes{executors, id},
		WelcomeTimeout: w.cfg.WelcomeTimeout, AckTimeout: w.cfg.AckTimeout,
		Logger: log.Named("session"), Metrics: w.env.Metrics,
	})
	w.nets.Store(nets)
	w.manager.Store(manager)
	w.client.Store(client)
	parts = append(parts,
		[]daemon.Task{{Name: "run tasks", Run: manager.Run}},
		[]daemon.Task{{Name: "describe node", Run: describer.run}},
		[]daemon.Task{{Name: "talk to dispatcher", Run: func(ctx context.Context) error {
			// A node that comes back should not seem to have lost its executors.
			describer.await(ctx)
			return client.Run(ctx)
		}}})
	return parts.Run(ctx)
}

// executors returns the executors and the network plugins, and what runs them.
func (w *Worker) executors(log *zap.Logger) (executor.Set, network.Set, []daemon.Task, error) {
	if w.env.Executors != nil {
		return w.env.Executors, w.env.Networks, nil, nil
	}
	host, err := w.plugins(log)
	if err != nil {
		return nil, nil, nil, err
	}
	run := []daemon.Task{{Name: "run plugins", Run: host.Run}}
	if w.env.Networks != nil {
		return host, w.env.Networks, run, nil
	}
	return host, host.Networks(), run, nil
}

// restore gives the manager the tasks that the node had, and returns how long to wait for
// the first description of the node.
func restore(manager *tasks.Manager, contents *taskdb.Contents, log *zap.Logger) time.Duration {
	if contents == nil {
		return firstDescription
	}
	manager.Restore(contents)
	log.Info("tasks restored", zap.Int("tasks", len(contents.Tasks)))
	if len(contents.Tasks) > 0 {
		return firstDescriptionWithTasks
	}
	return firstDescription
}

// Held returns the number of tasks that there is anything of on this node, be it
// that they run, or only that their executor has not removed them yet. A task
// that was removed from the cluster is held for a moment longer.
func (w *Worker) Held() int {
	manager := w.manager.Load()
	if manager == nil {
		return 0
	}
	return len(manager.IDs())
}

// Networked reports whether a network plugin of this worker was ever told of a network.
// Something of it may be on the node until [Sweep] removes it.
func (w *Worker) Networked() bool {
	nets := w.nets.Load()
	return nets != nil && nets.Applied()
}

// ErrNotJoined is why a worker has no session that never had one.
var ErrNotJoined = errors.New("no dispatcher has welcomed this worker yet")

// Session returns nil while there is a session with a dispatcher, and else why
// there is none.
func (w *Worker) Session() error {
	client := w.client.Load()
	if client == nil {
		return ErrNotJoined
	}
	s := client.Status()
	switch {
	case s.Connected:
		return nil
	case s.Since.IsZero() && s.Err == nil:
		return ErrNotJoined
	case s.Since.IsZero():
		return fmt.Errorf("%w: %w", ErrNotJoined, s.Err)
	case s.Err == nil:
		return fmt.Errorf("no session with a dispatcher for %v", time.Since(s.Since).Round(time.Second))
	}
	return fmt.Errorf("no session with a dispatcher for %v: %w", time.Since(s.Since).Round(time.Second), s.Err)
}

// open opens the task database, if there is a data directory.
func (w *Worker) open(log *zap.Logger) (*taskdb.DB, *taskdb.Contents, error) {
	if w.cfg.DataDir == "" {
		return nil, nil, nil
	}
	path := filepath.Join(w.cfg.DataDir, "tasks.db")
	db, contents, err := taskdb.Open(path)
	switch {
	case errors.Is(err, taskdb.ErrInUse):
		return nil, nil, fmt.Errorf("data directory %s is in use: %w; give each worker a directory of its own (--data-dir)", w.cfg.DataDir, err)
	case err != nil:
		return nil, nil, fmt.Errorf("open task database: %w", err)
	}
	if contents.SetAside != "" {
		log.Error("task database is damaged and was set aside; tasks are found again by what executors hold and managers assign",
			zap.String("file", path), zap.String("set_aside", contents.SetAside), zap.Error(contents.Damage))
	}
	return db, contents, nil
}

// plugins returns the host of the plugins.
func (w *Worker) plugins(log *zap.Logger) (*pluginhost.Host, error) {
	cfg := w.cfg.Plugins
	for name, dir := range map[string]*string{"executors": &cfg.StateDir, "networks": &cfg.NetworkStateDir} {
		if *dir != "" || w.cfg.DataDir == "" {
			continue
		}
		path, err := filepath.Abs(filepath.Join(w.cfg.DataDir, name))
		if err != nil {
			return nil, fmt.Errorf("find the directory for %s: %w", name, err)
		}
		*dir = path
	}
	return pluginhost.New(pluginhost.Env{Logger: log.Named("plugins"), Metrics: w.env.Metrics}, cfg)
}

// nodeIDFile is the file in the data directory with the node's id.
const nodeIDFile = "node-id"

// KnownNodeID returns the node's id, or "" if the node has none yet.
func (c Config) KnownNodeID() (string, error) {
	if c.NodeID != "" || c.DataDir == "" {
		return c.NodeID, nil
	}
	data, err := os.ReadFile(filepath.Join(c.DataDir, nodeIDFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read node id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// EnsureNodeID returns the node's id. A new one is on the disk before any
// other process hears of it.
func (c Config) EnsureNodeID() (string, error) {
	if c.DataDir != "" {
		if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
			return "", fmt.Errorf("make data directory (--data-dir): %w", err)
		}
	}
	switch id, err := c.KnownNodeID(); {
	case err != nil || id != "":
		return id, err
	case c.DataDir == "":
		return newNodeID(), nil
	}
	id := newNodeID()
	if err := atomicfile.Write(filepath.Join(c.DataDir, nodeIDFile), []byte(id+"\n")); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	return id, nil
}

var _ executor.Set = (*pluginhost.Host)(nil)
