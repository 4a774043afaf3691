package objects

import (
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// Stack is a stack, without its content.
type Stack = Plain[*recordv1.Stack]

func stackKind(t *state.Tables) plainKind[*recordv1.Stack] {
	return plainKind[*recordv1.Stack]{
		kind: musterv1.ObjectKind_STACK, table: t.Stacks,
		name:    (*recordv1.Stack).GetName,
		labels:  (*recordv1.Stack).GetLabels,
		message: func(s *Stack) proto.Message { return StackMessage(s) },
	}
}

// Stacks holds the stacks.
func (r *Reader) Stacks() *Collection[*recordv1.Stack] { return r.v.stacks }

// StackMessage returns a stack as users see it.
func StackMessage(s *Stack) *musterv1.Stack {
	m := &musterv1.Stack{
		Id: s.ID, Meta: meta(s.Version, s.Record.CreatedAt, s.Record.UpdatedAt),
		Spec: &musterv1.StackSpec{Name: s.Record.Name, Labels: s.Record.Labels},
	}
	if len(s.Record.Revisions) > 0 {
		m.Revision = RevisionMessage(s.Record.Revisions[0])
	}
	if s.Record.RemovingAt != 0 {
		m.RemovingSince, m.RemovingBy = timestamppb.New(time.UnixMilli(s.Record.RemovingAt)), s.Record.RemovingBy
	}
	return m
}

// RevisionMessage returns a revision as users see it, without its content.
func RevisionMessage(r *recordv1.StackRevision) *musterv1.StackRevision {
	return &musterv1.StackRevision{
		Number: r.Number, CreatedAt: timestamppb.New(time.UnixMilli(r.CreatedAt)), Digest: hex.EncodeToString(r.ContentDigest), By: r.By, Message: r.Message,
	}
}
