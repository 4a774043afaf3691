package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// profiles are being taken of the managers, side by side.
type profiles struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

// profile begins to take a CPU profile of each manager and of Consul, if the user
// has asked for profiles: a file each, by what is done, its name and the run.
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
	for name, address := range addresses {
		p.wg.Go(func() {
			if err := fetchProfile(ctx, address, filepath.Join(s.o.profile, fmt.Sprintf("%s.%s.%d.pprof", step, name, s.run))); err != nil {
				p.mu.Lock()
				p.errs = append(p.errs, fmt.Errorf("profile of %s: %w", name, err))
				p.mu.Unlock()
			}
		})
	}
	return p
}

func (p *profiles) wait() error {
	p.wg.Wait()
	return errors.Join(p.errs...)
}

func fetchProfile(ctx context.Context, ops, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/debug/pprof/profile?seconds=3", nil)
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
