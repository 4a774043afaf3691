package objects

import (
	"cmp"
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

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
		Size: c.Record.Size, Digest: hex.EncodeToString(c.Record.Digest), RotatedAt: rotatedAt(c.Record),
	}
}

// rotatedAt returns when a config or secret got the data that it has.
func rotatedAt(record interface {
	GetRotatedAt() int64
	GetCreatedAt() int64
}) *timestamppb.Timestamp {
	return timestamppb.New(time.UnixMilli(cmp.Or(record.GetRotatedAt(), record.GetCreatedAt())))
}
