package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"time"
)

// profiles are being taken of the managers and of this process, side by side.
type profiles struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

// profile begins to take a CPU profile of each manager, of Consul and of this process, if
// the user has asked for profiles: a file each, by what is done, its name and the run.
func (s *site) profile(ctx context.Context, step string) *profiles {
	p := &profiles{}
	if s.o.profile == "" {
		return p
	}
	step = strings.ReplaceAll(step, " ", "-")
	addresses := map[string]string{}
	for _, name := range s.managers() {
		addresses[name] = s.cluster.Ops(name)
	}
	if s.cluster.Consul != nil {
		addresses[consul] = s.cluster.Consul.Address
	}
	file := func(name string) string {
		return filepath.Join(s.o.profile, fmt.Sprintf("%s.%s.%d.pprof", step, name, s.run))
	}
	take := func(name string, profile func(context.Context, string) error) {
		p.wg.Go(func() {
			if err := profile(ctx, file(name)); err != nil {
				p.mu.Lock()
				p.errs = append(p.errs, fmt.Errorf("profile of %s: %w", name, err))
				p.mu.Unlock()
			}
		})
	}
	for name, address := range addresses {
		take(name, func(ctx context.Context, path string) error { return fetchProfile(ctx, address, path) })
	}
	take("workers", ownProfile)
	return p
}

// profileTime is how long a profile takes.
const profileTime = 3 * time.Second

// ownProfile takes a profile of this process: all workers and the client.
func ownProfile(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(err, f.Close())
	}
	select {
	case <-ctx.Done():
	case <-time.After(profileTime):
	}
	pprof.StopCPUProfile()
	return f.Close()
}

func (p *profiles) wait() error {
	p.wg.Wait()
	return errors.Join(p.errs...)
}

func fetchProfile(ctx context.Context, ops, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%.0f", ops, profileTime.Seconds()), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
