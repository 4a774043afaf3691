package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/renewals"
	"github.com/musterhq/muster/test/kit/rig"
)

// runCertificates has a cluster with access control under load while
// all certificates are renewed again and again, and some start again in
// between. Nothing else is done to it, so no call may fail. It reports whether
// none did.
func runCertificates(ctx context.Context, o options, dir string) (clean bool, err error) {
	built := filepath.Join(dir, "built")
	if err := rig.Build(ctx, ".", built); err != nil {
		return false, err
	}
	ids := map[string]string{}
	for _, name := range []string{renewals.Talks, renewals.Returns} {
		ids[name] = fmt.Sprintf("node-%s-%d", name, os.Getpid())
	}
	r, err := rig.Start(ctx, rig.Config{
		Config: cluster.Config{Dir: dir, Replicas: o.replicas, ConsulServers: consulServers, CertificateLifetime: o.certificates},
		Built:  built, NodeIDs: ids,
	})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	load, err := renewals.Start(ctx, r)
	if err != nil {
		return false, err
	}
	fmt.Printf("certificates last %v, %v, %d replicas of each manager, %d workers\n", o.certificates, o.duration, o.replicas, len(ids))
	began := time.Now()
	loaded, end := context.WithTimeout(ctx, o.duration)
	defer end()
	returned := make(chan error, 1)
	go func() { returned <- startAgain(loaded, r, o.certificates/2) }()
	load.Run(loaded)
	if err := <-returned; err != nil {
		return false, err
	}
	// A certificate is renewed when four fifths of its time are over at the latest.
	result, err := load.Result(ctx, int(o.duration/o.certificates))
	if err != nil {
		return false, err
	}
	if err := errors.Join(r.RemoveAll(ctx), await(ctx, settleTimeout, r.Empty)); err != nil {
		return false, err
	}
	return showCertificates(result, time.Since(began), o.json)
}

// startAgain kills some of those that keep their certificates in files, one after
// the other, and starts them again at once, until ctx ends.
func startAgain(ctx context.Context, r *rig.Rig, pause time.Duration) error {
	names := renewals.MayRestart()
	for n := 0; ; n++ {
		_ = backoff.Sleep(ctx, pause)
		if ctx.Err() != nil {
			return nil
		}
		name := names[n%len(names)]
		if r.Process(name) == nil {
			continue
		}
		if err := r.Process(name).Kill(); err != nil {
			return err
		}
		start := r.StartManager
		if name == renewals.Returns {
			start = r.StartNode
		}
		if err := start(name); err != nil {
			return err
		}
		fmt.Printf("%s %s was killed and started again\n", time.Now().Format("15:04:05.000"), name)
	}
}

// showCertificates prints the result, and writes it to a file if one is named. It
// reports whether nothing failed.
func showCertificates(result renewals.Result, took time.Duration, path string) (bool, error) {
	calls, renewed := 0, 0
	for _, what := range slices.Sorted(maps.Keys(result.Calls)) {
		fmt.Printf("%8d  %s\n", result.Calls[what], what)
		calls += result.Calls[what]
	}
	for _, name := range slices.Sorted(maps.Keys(result.Renewals)) {
		fmt.Printf("%8d  renewals of %s", result.Renewals[name], name)
		if shown := result.Shown[name]; shown > 0 {
			fmt.Printf(", %d certificates seen", shown)
		}
		fmt.Println()
		renewed += result.Renewals[name]
	}
	fmt.Printf("%v: %d calls, %d renewals, %d failures\n", took.Round(time.Second), calls, renewed, len(result.Failures))
	for _, f := range result.Failures {
		fmt.Println("  " + f)
	}
	if result.Stalls > 0 {
		fmt.Printf("the disk or Consul took more than a second %d times, and around that %d calls failed\n", result.Stalls, len(result.Stalled))
	}
	for _, f := range result.Stalled {
		fmt.Println("  " + f)
	}
	if path != "" {
		b, err := json.MarshalIndent(result, "", "  ")
		if err == nil {
			err = os.WriteFile(path, append(b, '\n'), 0o644)
		}
		if err != nil {
			return false, fmt.Errorf("write report: %w", err)
		}
	}
	return len(result.Failures) == 0, nil
}
