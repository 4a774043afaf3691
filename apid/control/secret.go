package control

import (
	"context"
	"crypto/subtle"
	"errors"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/blobs"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) secretKind() *kind[*recordv1.Secret, *objects.Secret, *musterv1.Secret] {
	return &kind[*recordv1.Secret, *objects.Secret, *musterv1.Secret]{
		Backend: s.Backend, name: "secret", table: s.Tables.Secrets,
		find: func(r *objects.Reader, ref string) (*objects.Secret, error) { return r.Secrets().Find(ref) },
		ascend: func(r *objects.Reader, from string, fn func(*objects.Secret) bool) {
			r.Secrets().Ascend(from, fn)
		},
		message:    func(_ *objects.Reader, o *objects.Secret) *musterv1.Secret { return objects.SecretMessage(o) },
		recordName: func(r *recordv1.Secret) string { return r.GetSpec().GetName() },
	}
}

// CreateSecret creates a secret.
func (s *Server) CreateSecret(ctx context.Context, req *musterv1.CreateSecretRequest) (*musterv1.CreateSecretResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Secret(req.Spec, true); err != nil {
		return nil, err
	}
	// The transaction that writes the secret decides. To look now saves the data of a
	// secret that has no chance.
	if err := s.secrets.taken(req.Spec.Name); err != nil {
		return nil, err
	}
	id, now := state.NewID(), time.Now().UnixMilli()
	err := s.withSealed(ctx, s.sealed, seal.SecretUse(id), req.Spec.Data, func(ctx context.Context, keep func(tx *store.Tx) (sealedData, error)) error {
		return s.secrets.createAs(ctx, id, func(tx *store.Tx) (*recordv1.Secret, error) {
			if err := s.checkStack(tx, req.Spec.Labels); err != nil {
				return nil, err
			}
			kept, err := keep(tx)
			if err != nil {
				return nil, err
			}
			record := kept.secret()
			record.Spec, record.CreatedAt, record.UpdatedAt, record.RotatedAt = withoutSecretData(req.Spec), now, now, now
			return record, nil
		})
	})
	if err != nil {
		return nil, err
	}
	m, err := s.secrets.shown(ctx, id)
	return &musterv1.CreateSecretResponse{Secret: m}, err
}

// sealedData is what a record says of its sealed data.
type sealedData struct {
	envelope *recordv1.Envelope
	digest   []byte
	size     uint64
}

func (d sealedData) secret() *recordv1.Secret {
	return &recordv1.Secret{Envelope: d.envelope, Digest: d.digest, Size: d.size}
}

// withSealed seals data for a use and writes it. Then it calls write with a function that
// its transaction must call.
func (s *Server) withSealed(ctx context.Context, in *blobs.Blobs, use string, data []byte, write func(ctx context.Context, keep func(tx *store.Tx) (sealedData, error)) error) error {
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	key, err := s.opt.Sealer.Current(ctx, s.Snapshot())
	if err != nil {
		return s.Fail("seal data", err)
	}
	envelope, sealed, err := key.Envelop(use, data)
	if err != nil {
		return s.Fail("seal data", err)
	}
	return withData(ctx, in, sealed, func(digest []byte, keep func(tx *store.Tx) error) error {
		return write(ctx, func(tx *store.Tx) (sealedData, error) {
			if err := keep(tx); err != nil {
				return sealedData{}, err
			}
			// Another key may seal by now.
			current, err := s.opt.Sealer.Rewrap(ctx, tx, envelope, use)
			return sealedData{current, digest, uint64(len(sealed))}, err
		})
	})
}

// withData writes data, and then calls write, whose transaction must call keep. It does so
// again if the sweep has removed the data meanwhile.
func withData(ctx context.Context, b *blobs.Blobs, data []byte, write func(digest []byte, keep func(tx *store.Tx) error) error) error {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		digest, err := b.Write(ctx, data)
		if err != nil {
			return b.Fail("write data", err)
		}
		lost := false
		err = write(digest, func(tx *store.Tx) error {
			err := b.Keep(tx, digest, uint64(len(data)))
			if lost = errors.Is(err, state.ErrNoBlob); lost {
				return status.Error(codes.Unavailable, "the data was removed before it was used; nothing was changed; try again")
			}
			return err
		})
		if !lost || attempt == attempts {
			return err
		}
	}
}

// GetSecret returns one secret, without its data.
func (s *Server) GetSecret(ctx context.Context, req *musterv1.GetSecretRequest) (*musterv1.GetSecretResponse, error) {
	m, err := s.secrets.get(ctx, req.Secret)
	return &musterv1.GetSecretResponse{Secret: m}, err
}

// ListSecrets returns a page of secrets.
func (s *Server) ListSecrets(ctx context.Context, req *musterv1.ListSecretsRequest) (*musterv1.ListSecretsResponse, error) {
	secrets, next, err := s.secrets.list(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return &musterv1.ListSecretsResponse{Secrets: secrets, NextPageToken: next}, nil
}

// UpdateSecret replaces the labels of a secret. Data that is given must be what it has.
func (s *Server) UpdateSecret(ctx context.Context, req *musterv1.UpdateSecretRequest) (*musterv1.UpdateSecretResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the secret that the new spec was decided on")
	}
	if err := s.validate.Secret(req.Spec, false); err != nil {
		return nil, err
	}
	m, err := s.secrets.update(ctx, req.Secret, &req.Version, func(tx *store.Tx, id string, e store.Entry[*recordv1.Secret]) (*recordv1.Secret, error) {
		old := e.Value
		var report validate.Report
		if name := req.Spec.Name; name != "" && name != old.GetSpec().GetName() {
			report.Invalid("spec.name", "cannot be changed: it is %q; create another secret", old.GetSpec().GetName())
		}
		if len(req.Spec.Data) > 0 {
			same, err := s.hasData(tx, id, old, req.Spec.Data)
			if err != nil {
				return nil, s.Fail("open secret", err)
			}
			if !same {
				report.Invalid("spec.data", "cannot be changed by an update: rotate the secret (muster secret rotate)")
			}
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
	return &musterv1.UpdateSecretResponse{Secret: m}, err
}

// hasData reports whether a secret has some data. Clients that deploy a stack again send
// the data that a secret has.
func (s *Server) hasData(r store.Reader, id string, secret *recordv1.Secret, data []byte) (bool, error) {
	sealed, err := s.Tables.ReadSealed(r, secret.Digest)
	if err != nil {
		return false, err
	}
	have, err := s.opt.Sealer.Open(id, secret, sealed)
	return subtle.ConstantTimeCompare(have, data) == 1, err
}

// RotateSecret gives a secret other data.
func (s *Server) RotateSecret(ctx context.Context, req *musterv1.RotateSecretRequest) (*musterv1.RotateSecretResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the secret that the rotation was decided on")
	}
	if err := validate.Data(req.Data, validate.MaxSecret); err != nil {
		return nil, err
	}
	id, err := s.secrets.id(ctx, req.Secret)
	if err != nil {
		return nil, err
	}
	var m *musterv1.Secret
	err = s.withSealed(ctx, s.sealed, seal.SecretUse(id), req.Data, func(ctx context.Context, keep func(tx *store.Tx) (sealedData, error)) (err error) {
		m, err = s.secrets.update(ctx, id, &req.Version, func(tx *store.Tx, _ string, e store.Entry[*recordv1.Secret]) (*recordv1.Secret, error) {
			if err := validate.Template("data", e.Value.GetSpec().GetTemplating(), req.Data); err != nil {
				return nil, err
			}
			kept, err := keep(tx)
			if err != nil {
				return nil, err
			}
			if err := s.restartUsers(ctx, tx, true, id); err != nil {
				return nil, err
			}
			now := max(time.Now().UnixMilli(), e.Value.UpdatedAt)
			next := kept.secret()
			next.Spec, next.CreatedAt, next.UpdatedAt, next.RotatedAt = e.Value.Spec, e.Value.CreatedAt, now, now
			return next, nil
		})
		return err
	})
	return &musterv1.RotateSecretResponse{Secret: m}, err
}

// RemoveSecret removes a secret that no service uses. Its data goes with the sweep.
func (s *Server) RemoveSecret(ctx context.Context, req *musterv1.RemoveSecretRequest) (*musterv1.RemoveSecretResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	err := s.secrets.remove(ctx, req.Secret, func(tx *store.Tx, id string, e store.Entry[*recordv1.Secret]) error {
		return s.unused(tx, "secret", e.Value.GetSpec().GetName(), refersTo(musterv1.ResourceReference_SECRET, id))
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.RemoveSecretResponse{}, nil
}

// withoutSecretData returns a secret's spec without its data, which is stored apart.
func withoutSecretData(spec *musterv1.SecretSpec) *musterv1.SecretSpec {
	return &musterv1.SecretSpec{Name: spec.Name, Labels: spec.Labels, Templating: spec.Templating, Driver: spec.Driver}
}
