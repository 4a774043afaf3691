package objects

import (
	"encoding/hex"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Config is a config.
type Config = Plain[*recordv1.Config]

func configKind(t *state.Tables) plainKind[*recordv1.Config] {
	return plainKind[*recordv1.Config]{
		kind: musterv1.ObjectKind_CONFIG, table: t.Configs,
		name:    func(r *recordv1.Config) string { return r.GetSpec().GetName() },
		labels:  func(r *recordv1.Config) map[string]string { return r.GetSpec().GetLabels() },
		message: func(c *Config) proto.Message { return ConfigMessage(c) },
	}
}

// Configs holds the configs.
func (r *Reader) Configs() *Collection[*recordv1.Config] { return r.v.configs }

// ConfigMessage returns a config as users see it, without its data.
func ConfigMessage(c *Config) *musterv1.Config {
	return &musterv1.Config{
		Id: c.ID, Meta: meta(c.Version, c.Record.CreatedAt, c.Record.UpdatedAt), Spec: c.Record.Spec,
		Size: c.Record.Size, Digest: hex.EncodeToString(c.Record.Digest),
	}
}
