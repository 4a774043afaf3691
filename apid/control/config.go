package control

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) configKind() *kind[*recordv1.Config, *objects.Config, *musterv1.Config] {
	return &kind[*recordv1.Config, *objects.Config, *musterv1.Config]{
		Backend: s.Backend, name: "config", table: s.Tables.Configs,
		find: func(r *objects.Reader, ref string) (*objects.Config, error) { return r.Configs().Find(ref) },
		ascend: func(r *objects.Reader, from string, fn func(*objects.Config) bool) {
			r.Configs().Ascend(from, fn)
		},
		message:    func(_ *objects.Reader, c *objects.Config) *musterv1.Config { return objects.ConfigMessage(c) },
		recordName: func(r *recordv1.Config) string { return r.GetSpec().GetName() },
	}
}

// CreateConfig creates a config.
func (s *Server) CreateConfig(ctx context.Context, req *musterv1.CreateConfigRequest) (*musterv1.CreateConfigResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Config(req.Spec, true); err != nil {
		return nil, err
	}
	// The transaction that writes the config decides. To look now saves the data of
	// a config that has no chance.
	if err := s.configs.taken(req.Spec.Name); err != nil {
		return nil, err
	}
	now := time.Now().UnixMilli()
	record := &recordv1.Config{
		Spec: withoutData(req.Spec), Digest: state.BlobDigest(req.Spec.Data), Size: uint64(len(req.Spec.Data)), CreatedAt: now, UpdatedAt: now,
	}
	id := state.NewID()
	writing, cancel := s.Writing(ctx)
	defer cancel()
	err := withData(writing, s.blobs, req.Spec.Data, func(_ []byte, keep func(tx *store.Tx) error) error {
		return s.configs.createAs(writing, id, func(tx *store.Tx) (*recordv1.Config, error) {
			if err := s.checkStack(tx, req.Spec.Labels); err != nil {
				return nil, err
			}
			return record, keep(tx)
		})
	})
	if err != nil {
		return nil, err
	}
	m, err := s.configs.shown(ctx, id)
	return &musterv1.CreateConfigResponse{Config: m}, err
}

// GetConfig returns one config, with its data.
func (s *Server) GetConfig(ctx context.Context, req *musterv1.GetConfigRequest) (*musterv1.GetConfigResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	c, err := resolve(ctx, s.configs, req.Config, func(_ *objects.Reader, c *objects.Config) *objects.Config { return c })
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	data, err := s.blobs.Read(ctx, c.Record.Digest)
	if errors.Is(err, state.ErrBlobDamaged) {
		s.Log.Error("data of config is damaged", zap.String("config", c.ID), zap.Error(err))
		return nil, status.Errorf(codes.DataLoss,
			"the data of config %q in the store does not match its digest: create another config with the same data, which repairs it", c.Name())
	}
	if err != nil {
		return nil, s.Fail("read data of config", err)
	}
	m := objects.ConfigMessage(c)
	m.Spec = withoutData(m.Spec)
	m.Spec.Data = data
	return &musterv1.GetConfigResponse{Config: m}, nil
}

// ListConfigs returns a page of configs.
func (s *Server) ListConfigs(ctx context.Context, req *musterv1.ListConfigsRequest) (*musterv1.ListConfigsResponse, error) {
	configs, next, err := s.configs.list(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return &musterv1.ListConfigsResponse{Configs: configs, NextPageToken: next}, nil
}

// UpdateConfig replaces the labels of a config.
func (s *Server) UpdateConfig(ctx context.Context, req *musterv1.UpdateConfigRequest) (*musterv1.UpdateConfigResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the config that the new spec was decided on")
	}
	if err := s.validate.Config(req.Spec, false); err != nil {
		return nil, err
	}
	m, err := s.configs.update(ctx, req.Config, &req.Version, func(_ *store.Tx, _ string, e store.Entry[*recordv1.Config]) (*recordv1.Config, error) {
		old := e.Value
		var report validate.Report
		if name := req.Spec.Name; name != "" && name != old.GetSpec().GetName() {
			report.Invalid("spec.name", "cannot be changed: it is %q; create another config", old.GetSpec().GetName())
		}
		if data := req.Spec.Data; len(data) > 0 && string(state.BlobDigest(data)) != string(old.Digest) {
			report.Invalid("spec.data", "cannot be changed by an update: rotate the config (muster config rotate), or create another one")
		}
		if err := report.Err(); err != nil {
			return nil, err
		}
		if maps.Equal(old.GetSpec().GetLabels(), req.Spec.Labels) {
			return nil, backend.ErrNoChange
		}
		next := proto.CloneOf(old)
		next.Spec.Labels, next.UpdatedAt = req.Spec.Labels, max(time.Now().UnixMilli(), old.UpdatedAt)
		return next, nil
	})
	return &musterv1.UpdateConfigResponse{Config: m}, err
}

// RotateConfig gives a config other data.
func (s *Server) RotateConfig(ctx context.Context, req *musterv1.RotateConfigRequest) (*musterv1.RotateConfigResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the config that the rotation was decided on")
	}
	if err := validate.Data(req.Data, validate.MaxConfig); err != nil {
		return nil, err
	}
	writing, cancel := s.Writing(ctx)
	defer cancel()
	var m *musterv1.Config
	err := withData(writing, s.blobs, req.Data, func(digest []byte, keep func(tx *store.Tx) error) (err error) {
		m, err = s.configs.update(writing, req.Config, &req.Version, func(tx *store.Tx, id string, e store.Entry[*recordv1.Config]) (*recordv1.Config, error) {
			if bytes.Equal(e.Value.Digest, digest) {
				return nil, backend.ErrNoChange
			}
			if err := validate.Template("data", e.Value.GetSpec().GetTemplating(), req.Data); err != nil {
				return nil, err
			}
			if err := s.restartUsers(writing, tx, false, id); err != nil {
				return nil, err
			}
			next := proto.CloneOf(e.Value)
			now := max(time.Now().UnixMilli(), e.Value.UpdatedAt)
			next.Digest, next.Size, next.UpdatedAt, next.RotatedAt = digest, uint64(len(req.Data)), now, now
			return next, keep(tx)
		})
		return err
	})
	return &musterv1.RotateConfigResponse{Config: m}, err
}

// RemoveConfig removes a config that no service uses. Its data goes with the sweep.
func (s *Server) RemoveConfig(ctx context.Context, req *musterv1.RemoveConfigRequest) (*musterv1.RemoveConfigResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	err := s.configs.remove(ctx, req.Config, func(tx *store.Tx, id string, e store.Entry[*recordv1.Config]) error {
		return s.unused(tx, "config", e.Value.GetSpec().GetName(), refersTo(musterv1.ResourceReference_CONFIG, id))
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.RemoveConfigResponse{}, nil
}

// withoutData returns a config's spec without its data, which is stored apart.
func withoutData(spec *musterv1.ConfigSpec) *musterv1.ConfigSpec {
	return &musterv1.ConfigSpec{Name: spec.Name, Labels: spec.Labels, Templating: spec.Templating}
}
