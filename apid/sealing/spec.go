package sealing

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// SealsSpecs reports whether the values of task specs are sealed, or apid has no key to do
// so.
func (s *Sealer) SealsSpecs(r store.Reader) bool {
	if s.keys == nil {
		return true
	}
	e, _ := s.Tables.Sealing.Get(r, state.ClusterID)
	return e.Value.GetStandInEnvelope() != nil
}

// SealSpecs has the values of task specs sealed from now on. The caller must know that every
// daemon that opens them can do so.
func (s *Sealer) SealSpecs(ctx context.Context) error {
	return s.Update(ctx, func(tx *store.Tx) error {
		e, ok := s.Tables.Sealing.Get(tx, state.ClusterID)
		if e.Value.GetStandInEnvelope() != nil {
			return backend.ErrNoChange
		}
		key, err := s.Current(ctx, tx)
		if err != nil {
			return err
		}
		next := &recordv1.Sealing{KeyName: key.Name(), UpdatedAt: time.Now().UnixMilli()}
		if ok {
			next = proto.CloneOf(e.Value)
		}
		next.StandInEnvelope, next.StandInKey, err = key.Envelop(seal.StandInUse, seal.NewKey()[:])
		if err != nil {
			return err
		}
		s.Tables.Sealing.Put(tx, state.ClusterID, next)
		return nil
	})
}

// Spec returns what is stored of a task spec, and under which digest. Equal specs have
// equal digests, as long as the cluster seals their values or does not.
func (s *Sealer) Spec(ctx context.Context, r store.Reader, task *musterv1.TaskSpec) (digest []byte, record *recordv1.Spec, err error) {
	e, _ := s.Tables.Sealing.Get(r, state.ClusterID)
	if e.Value.GetStandInEnvelope() == nil || !seal.HasValues(task) {
		digest, err = state.Digest(task)
		return digest, &recordv1.Spec{Task: task}, err
	}
	if s.keys == nil {
		return nil, nil, status.Error(codes.FailedPrecondition, "values of task specs are sealed in this cluster, and this apid has no key: start it with --cluster-key-file")
	}
	standIns, err := s.keys.OpenKey(e.Value.StandInEnvelope, seal.StandInUse, e.Value.StandInKey)
	if err != nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "the key of the values of task specs: %v", err)
	}
	hidden, values, err := standIns.Hide(task)
	if err != nil {
		return nil, nil, err
	}
	if digest, err = state.Digest(hidden); err != nil {
		return nil, nil, err
	}
	key, err := s.Current(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	record, err = key.EnvelopSpec(state.SpecKey(digest), hidden, values)
	return digest, record, err
}

// OpenSpec returns the task spec of the record with key id, with all values.
func (s *Sealer) OpenSpec(id string, record *recordv1.Spec) (*musterv1.TaskSpec, error) {
	return s.keys.OpenSpec(id, record)
}
