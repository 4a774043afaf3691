package objects

import (
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Secret is a secret, without its data.
type Secret = Plain[*recordv1.Secret]

func secretKind(t *state.Tables) plainKind[*recordv1.Secret] {
	return plainKind[*recordv1.Secret]{
		kind: musterv1.ObjectKind_SECRET, table: t.Secrets,
		name:    func(r *recordv1.Secret) string { return r.GetSpec().GetName() },
		labels:  func(r *recordv1.Secret) map[string]string { return r.GetSpec().GetLabels() },
		message: func(s *Secret) proto.Message { return SecretMessage(s) },
	}
}

// Secrets holds the secrets.
func (r *Reader) Secrets() *Collection[*recordv1.Secret] { return r.v.secrets }

// SecretMessage returns a secret as users see it.
func SecretMessage(s *Secret) *musterv1.Secret {
	return &musterv1.Secret{
		Id: s.ID, Meta: meta(s.Version, s.Record.CreatedAt, s.Record.UpdatedAt), Spec: s.Record.Spec, RotatedAt: rotatedAt(s.Record),
	}
}
