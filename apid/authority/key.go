package authority

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/ca"
)

// The daemons that have the cluster's keys.
const (
	apid       = "apid"
	dispatcher = "dispatcherd"
)

// KeyNames implements daemon.KeyHolder.
func (a *Authority) KeyNames() []string { return a.opt.Sealer.KeyNames() }

// GetClusterKeys returns which keys seal, and which daemons have them.
func (c *Control) GetClusterKeys(ctx context.Context, _ *musterv1.GetClusterKeysRequest) (*musterv1.GetClusterKeysResponse, error) {
	current, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	holders, err := c.keyHolders(ctx)
	if err != nil {
		return nil, err
	}
	others, err := c.sealedBy(ctx)
	delete(others, current)
	return &musterv1.GetClusterKeysResponse{SealedWith: current, Holders: holders, OtherKeys: others}, err
}

// current returns the name of the key that seals new records.
func (c *Control) current(ctx context.Context) (string, error) {
	if err := c.backend.Ready(ctx); err != nil {
		return "", err
	}
	key, err := c.opt.Sealer.Current(ctx, c.backend.Snapshot())
	if err != nil {
		return "", c.backend.Fail("read which key seals", err)
	}
	return key.Name(), nil
}

// sealedBy returns how many records each key seals.
func (c *Control) sealedBy(ctx context.Context) (map[string]uint64, error) {
	counts := c.opt.Sealer.Count()
	if c.opt.Own != nil {
		name, err := c.opt.Own.SealedWith(ctx)
		if err != nil {
			return nil, c.backend.Fail("read which key seals the authority", err)
		}
		counts[name]++
	}
	return counts, nil
}

// ResealCluster seals everything with the first key, once all daemons that open something
// have it.
func (c *Control) ResealCluster(ctx context.Context, _ *musterv1.ResealClusterRequest) (*musterv1.ResealClusterResponse, error) {
	before, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	holders, err := c.keyHolders(ctx)
	if err != nil {
		return nil, err
	}
	key := c.KeyNames()[0]
	sealed := c.opt.Sealer.DispatchersOpen()
	var without []string
	for _, h := range holders {
		// A cluster without anything that dispatchers open needs no key there.
		needed := h.Daemon == apid || sealed || len(h.Keys) > 0
		if needed && !slices.Contains(h.Keys, key) {
			without = append(without, strings.TrimSpace(fmt.Sprintf("%s %s at %s %s", h.Daemon, h.Instance, h.Address, h.Problem)))
		}
	}
	if len(without) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition,
			"key %s cannot seal yet, because these daemons could not open what it seals (write it into their --cluster-key-file): %s", key, strings.Join(without, "; "))
	}
	writing, cancel := c.backend.Writing(ctx)
	defer cancel()
	if err := c.reseal(writing, key); errors.Is(err, ca.ErrOtherKey) || errors.Is(err, sealing.ErrOtherKey) {
		return nil, status.Error(codes.Aborted, "the file with the cluster's keys has changed meanwhile; try again")
	} else if err != nil {
		return nil, c.backend.Fail("reseal", err)
	}
	c.backend.Log.Info("secrets are sealed with a cluster key", zap.String("key", key), zap.String("before", before), zap.String("by", backend.Caller(ctx)))
	return &musterv1.ResealClusterResponse{SealedWith: key, Before: before, Holders: holders}, nil
}

func (c *Control) reseal(ctx context.Context, key string) error {
	if err := c.opt.Sealer.Reseal(ctx, key); err != nil {
		return err
	}
	if c.opt.Own == nil {
		return nil
	}
	sealed, err := c.opt.Own.SealedWith(ctx)
	if err != nil || sealed == key {
		return err
	}
	return c.opt.Own.Reseal(ctx, key, backend.Caller(ctx))
}

// keyHolders asks every apid and every dispatcher which of the cluster's keys it has.
func (c *Control) keyHolders(ctx context.Context) ([]*musterv1.KeyHolder, error) {
	found, err := c.look(ctx)
	if err != nil {
		return nil, err
	}
	return keyHolders(found), nil
}

func (c *Control) look(ctx context.Context) (clusterstatus.Findings, error) {
	found := c.opt.Looker.Look(ctx)
	if found.Store.Err != nil {
		return found, status.Errorf(codes.Unavailable, "it is not known which apids and dispatchers there are, because the store does not answer: %v", found.Store.Err)
	}
	return found, nil
}

func keyHolders(found clusterstatus.Findings) []*musterv1.KeyHolder {
	var holders []*musterv1.KeyHolder
	seen := map[string]bool{}
	for _, ownership := range found.Ownership {
		for _, m := range ownership.Members {
			if m.Daemon != apid && m.Daemon != dispatcher || seen[m.Instance] {
				continue
			}
			seen[m.Instance] = true
			h := &musterv1.KeyHolder{Instance: m.Instance, Address: m.Address, Daemon: m.Daemon}
			switch r := found.Reports[m.Instance]; {
			case r.Err != nil:
				h.Problem = r.Err.Error()
			case r.ReportResponse == nil || len(r.Keys) == 0 && m.Daemon == apid:
				h.Problem = "it does not say which keys it has"
			default:
				h.Keys = r.Keys
			}
			holders = append(holders, h)
		}
	}
	slices.SortFunc(holders, func(a, b *musterv1.KeyHolder) int { return cmp.Compare(a.Instance, b.Instance) })
	return holders
}

// lookAgain is the least time between two looks at whether all daemons can open task specs.
const lookAgain = 15 * time.Second

// SealSpecs has the values of task specs sealed from now on, if that is not so yet and every
// daemon that opens them can do so: a daemon of a former version, or one without the key,
// would take stand-ins for values.
func (c *Control) SealSpecs(ctx context.Context) {
	s := c.opt.Sealer
	if s.SealsSpecs(c.backend.Snapshot()) {
		return
	}
	c.sealing.Lock()
	defer c.sealing.Unlock()
	if s.SealsSpecs(c.backend.Snapshot()) || time.Since(c.looked) < lookAgain {
		return
	}
	defer func() { c.looked = time.Now() }()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := func() error {
		key, err := c.current(ctx)
		if err != nil {
			return err
		}
		found, err := c.look(ctx)
		if err != nil {
			return err
		}
		holders := keyHolders(found)
		if !slices.ContainsFunc(holders, func(h *musterv1.KeyHolder) bool { return h.Daemon == dispatcher }) {
			return errors.New("no dispatcherd runs yet, and it is not known whether one will have the key")
		}
		for _, h := range holders {
			if !slices.Contains(h.Keys, key) || !found.Reports[h.Instance].GetOpensSpecs() {
				return fmt.Errorf("%s %s at %s cannot open them: start it in this version, with --cluster-key-file", h.Daemon, h.Instance, h.Address)
			}
		}
		// One that has just started may not be a member yet.
		for _, daemon := range []string{apid, dispatcher} {
			for _, p := range found.Processes[daemon] {
				if p.Alive && !slices.ContainsFunc(holders, func(h *musterv1.KeyHolder) bool { return h.Address == p.Address }) {
					return fmt.Errorf("%s at %s is not known yet", daemon, p.Address)
				}
			}
		}
		return s.SealSpecs(ctx)
	}()
	if err != nil {
		c.backend.Log.Warn("values of task specs are not sealed yet", zap.Error(err))
	}
}
