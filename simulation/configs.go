package simulation

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// contents is how many different contents configs have. They are few, so that configs
// share data.
const contents = 4

// content returns the data of configs of that number. The last has three chunks.
func content(n int) []byte {
	return bytes.Repeat([]byte{byte('a' + n)}, 1+n*state.ChunkSize*2/3)
}

// addConfigs adds what users do with configs, in streams of their own.
func (s *Script) addConfigs(size Size) {
	if size.Calls == 0 {
		return
	}
	for client := range size.Clients {
		r := rand.New(rand.NewPCG(s.Seed, 4<<32+uint64(client)))
		w := &writer{Rand: r, size: size}
		var names []string
		for at := 3 * time.Second; at < size.Length; at += w.pause(4 * size.Calls) {
			w.made++
			step := Step{At: at, Client: client, API: replica("apid", 1+r.IntN(size.Managers))}
			if size.Faults > 0 && one(r, 12) {
				step.Twin = replica("apid", 1+r.IntN(size.Managers))
			}
			switch at := r.IntN(len(names) + 1); {
			case at == len(names) || one(r, 4):
				step.Op, step.Who, step.N = createConfig, fmt.Sprintf("c%d-%d", client, w.made), r.IntN(contents)
				names = append(names, step.Who)
			case one(r, 2):
				step.Op, step.Who = removeConfig, names[at]
				names = slices.Delete(names, at, at+1)
			default:
				step.Op, step.Who, step.N = updateConfig, names[at], w.made
			}
			s.Steps = append(s.Steps, step)
		}
	}
}

func (u *user) createConfig(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	spec := &musterv1.ConfigSpec{Name: s.Who, Data: content(s.N), Labels: map[string]string{revisionLabel: "created"}}
	_, err := api.CreateConfig(ctx, &musterv1.CreateConfigRequest{Spec: spec})
	return func(accepted bool) {
		note(&v.there, accepted, true)
		note(&v.revision, accepted, "created")
	}, err
}

// updateConfig changes the labels of a config, and checks its data.
func (u *user) updateConfig(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	got, err := api.GetConfig(ctx, &musterv1.GetConfigRequest{Config: s.Who})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMade, err)
	}
	if got.Config.Digest != state.BlobKey(state.BlobDigest(got.Config.Spec.Data)) {
		u.c.violated("config %s has %d bytes of other data than its digest says", s.Who, len(got.Config.Spec.Data))
	}
	revision := fmt.Sprint(s.N)
	_, err = api.UpdateConfig(ctx, &musterv1.UpdateConfigRequest{
		Config: s.Who, Version: got.Config.Meta.Version, Spec: &musterv1.ConfigSpec{Labels: map[string]string{revisionLabel: revision}},
	})
	return func(accepted bool) { note(&v.revision, accepted, revision) }, err
}

func (u *user) removeConfig(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.RemoveConfig(ctx, &musterv1.RemoveConfigRequest{Config: s.Who})
	return func(accepted bool) { note(&v.there, accepted, false) }, err
}

// checkConfigs says where the configs that there are differ from what was accepted.
func (u *user) checkConfigs(there map[string]*recordv1.Config) (faults []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for name, v := range u.configs {
		r := there[name]
		switch {
		case v.calling > 0:
		case r == nil && !slices.Contains(v.there, false):
			fault("config %s was accepted, and is not there", name)
		case r != nil && !slices.Contains(v.there, true):
			fault("config %s is there: its removal was accepted, or it was never made", name)
		case r != nil && !slices.Contains(v.revision, r.Spec.Labels[revisionLabel]):
			fault("config %s has revision %s, accepted were %v", name, r.Spec.Labels[revisionLabel], v.revision)
		}
	}
	return faults
}

// stored wants each config to have its data, and each chunk of data its record.
func (p *picture) stored() {
	blobs := p.observer.tables.Blobs
	for name, c := range p.configs {
		if data, err := p.observer.tables.ReadBlob(p.now, c.Digest); err != nil || uint64(len(data)) != c.Size {
			p.fault("config %s lacks data: %d bytes of %d (%v)", name, len(data), c.Size, err)
		}
	}
	for e := range blobs.Scan(p.now, "") {
		blob, _, _ := strings.Cut(e.Key, "/")
		if _, ok := blobs.Get(p.now, blob); !ok {
			p.fault("chunk %s is of no data", e.Key)
		}
	}
}

// noOrphanedData wants all data to be of a config.
func (p *picture) noOrphanedData() {
	used := map[string]bool{}
	for _, c := range p.configs {
		used[state.BlobKey(c.Digest)] = true
	}
	for e := range p.observer.tables.Blobs.Scan(p.now, "") {
		if blob, _, _ := strings.Cut(e.Key, "/"); !used[blob] {
			p.fault("data %s is of no config", e.Key)
		}
	}
}

// greedySweep removes data whether configs have it or not.
func greedySweep() Mutation {
	return sweeps("a sweep that takes data in use", func(r *rogue, tx *store.Tx, blob string) {
		for chunk := range r.tables.Blobs.Scan(tx, blob+"/") {
			r.tables.Blobs.Delete(tx, chunk.Key)
		}
		r.tables.Blobs.Delete(tx, blob)
	})
}

// carelessSweep removes the record of data, and leaves the data.
func carelessSweep() Mutation {
	return sweeps("a sweep that leaves chunks", func(r *rogue, tx *store.Tx, blob string) {
		for e := range r.tables.Configs.Scan(tx, "") {
			if state.BlobKey(e.Value.Digest) == blob {
				return
			}
		}
		r.tables.Blobs.Delete(tx, blob)
	})
}

// sweeps removes data once it is ten seconds old.
func sweeps(name string, remove func(r *rogue, tx *store.Tx, blob string)) Mutation {
	return rogues(name, func(ctx context.Context, r *rogue) error {
		for e := range r.tables.Blobs.Scan(r.now, "") {
			if strings.Contains(e.Key, "/") || time.Since(time.UnixMilli(e.Value.UsedAt)) < 10*time.Second {
				continue
			}
			if err := r.store.Update(ctx, func(tx *store.Tx) error {
				remove(r, tx, e.Key)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
}
