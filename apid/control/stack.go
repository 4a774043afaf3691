package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// maxRevisions is how many revisions of a stack are kept.
const maxRevisions = 25

func (s *Server) stackKind() *kind[*recordv1.Stack, *objects.Stack, *musterv1.Stack] {
	return &kind[*recordv1.Stack, *objects.Stack, *musterv1.Stack]{
		Backend: s.Backend, name: "stack", table: s.Tables.Stacks,
		find: func(r *objects.Reader, ref string) (*objects.Stack, error) { return r.Stacks().Find(ref) },
		ascend: func(r *objects.Reader, from string, fn func(*objects.Stack) bool) {
			r.Stacks().Ascend(from, fn)
		},
		message:    func(_ *objects.Reader, o *objects.Stack) *musterv1.Stack { return objects.StackMessage(o) },
		recordName: (*recordv1.Stack).GetName,
	}
}

// CreateStack stores the first content of a stack.
func (s *Server) CreateStack(ctx context.Context, req *musterv1.CreateStackRequest) (*musterv1.CreateStackResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Stack(req.Spec, req.Message, s.executors()); err != nil {
		return nil, err
	}
	if err := s.stacks.taken(req.Spec.Name); err != nil {
		return nil, err
	}
	c, err := newContent(req.Spec, nil)
	if err != nil {
		return nil, s.Fail("encode stack", err)
	}
	id, now := state.NewID(), time.Now().UnixMilli()
	err = s.withSealed(ctx, s.contents, seal.StackUse(id), c.encoded, func(ctx context.Context, keep func(tx *store.Tx) (sealedData, error)) error {
		return s.stacks.createAs(ctx, id, func(tx *store.Tx) (*recordv1.Stack, error) {
			kept, err := keep(tx)
			if err != nil {
				return nil, err
			}
			first := c.revision(kept, 1, now, backend.Caller(ctx), req.Message)
			return &recordv1.Stack{
				Name: req.Spec.Name, Labels: req.Spec.Labels, Revisions: []*recordv1.StackRevision{first}, CreatedAt: now, UpdatedAt: now,
			}, nil
		})
	})
	if err != nil {
		return nil, err
	}
	m, err := s.stacks.shown(ctx, id)
	return &musterv1.CreateStackResponse{Stack: m}, err
}

// content is what is stored of a stack's spec.
type content struct {
	encoded []byte
	// digest tells contents of one stack apart.
	digest []byte
}

// newContent encodes a spec, without the data of secrets. Its digests are made with a key,
// or, if that is nil, with the one that the spec names or a new one.
func newContent(spec *musterv1.StackSpec, key []byte) (content, error) {
	spec = proto.CloneOf(spec)
	for _, secret := range spec.Secrets {
		secret.Data = nil
	}
	if key != nil {
		spec.DigestKey = key
	}
	if len(spec.DigestKey) == 0 {
		spec.DigestKey = make([]byte, sha256.Size)
		// Read never fails since Go 1.24.
		_, _ = rand.Read(spec.DigestKey)
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return content{}, fmt.Errorf("encode spec: %w", err)
	}
	h := hmac.New(sha256.New, spec.DigestKey)
	h.Write(encoded)
	return content{encoded, h.Sum(nil)}, nil
}

func (c content) revision(kept sealedData, number uint64, now int64, by, message string) *recordv1.StackRevision {
	return &recordv1.StackRevision{
		Number: number, CreatedAt: now, ContentDigest: c.digest, By: by, Message: message,
		Envelope: kept.envelope, Digest: kept.digest, Size: kept.size,
	}
}

// GetStack returns one stack, without its content.
func (s *Server) GetStack(ctx context.Context, req *musterv1.GetStackRequest) (*musterv1.GetStackResponse, error) {
	m, err := s.stacks.get(ctx, req.Stack)
	return &musterv1.GetStackResponse{Stack: m}, err
}

// ListStacks returns a page of stacks, without their content.
func (s *Server) ListStacks(ctx context.Context, req *musterv1.ListStacksRequest) (*musterv1.ListStacksResponse, error) {
	stacks, next, err := s.stacks.list(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return &musterv1.ListStacksResponse{Stacks: stacks, NextPageToken: next}, nil
}

// ListStackRevisions returns the revisions of a stack, without their content.
func (s *Server) ListStackRevisions(ctx context.Context, req *musterv1.ListStackRevisionsRequest) (*musterv1.ListStackRevisionsResponse, error) {
	o, err := s.findStack(ctx, req.Stack)
	if err != nil {
		return nil, err
	}
	list := &musterv1.ListStackRevisionsResponse{}
	for _, r := range o.Record.Revisions {
		list.Revisions = append(list.Revisions, objects.RevisionMessage(r))
	}
	return list, nil
}

// GetStackRevision returns one revision with its content.
func (s *Server) GetStackRevision(ctx context.Context, req *musterv1.GetStackRevisionRequest) (*musterv1.GetStackRevisionResponse, error) {
	o, err := s.findStack(ctx, req.Stack)
	if err != nil {
		return nil, err
	}
	for _, r := range o.Record.Revisions {
		if r.Number == cmp.Or(req.Revision, r.Number) {
			spec, err := s.stackContent(ctx, o.ID, r)
			return &musterv1.GetStackRevisionResponse{Revision: objects.RevisionMessage(r), Spec: spec}, err
		}
	}
	kept := o.Record.Revisions
	return nil, status.Errorf(codes.NotFound, "there is no revision %d of stack %q: revisions %d to %d are kept",
		req.Revision, o.Name(), kept[len(kept)-1].Number, kept[0].Number)
}

func (s *Server) findStack(ctx context.Context, ref string) (*objects.Stack, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	return resolve(ctx, s.stacks, ref, func(_ *objects.Reader, o *objects.Stack) *objects.Stack { return o })
}

// stackContent reads and opens the content of a revision.
func (s *Server) stackContent(ctx context.Context, id string, r *recordv1.StackRevision) (*musterv1.StackSpec, error) {
	ctx, cancel := s.Writing(ctx)
	defer cancel()
	sealed, err := s.contents.Read(ctx, r.Digest)
	if err != nil {
		return nil, s.Fail("read content of stack", err)
	}
	encoded, err := s.opt.Sealer.OpenStack(id, r, sealed)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%v", err)
	}
	spec := &musterv1.StackSpec{}
	if err := proto.Unmarshal(encoded, spec); err != nil {
		return nil, s.Fail("decode content of stack", err)
	}
	return spec, nil
}

// UpdateStack stores another content of a stack.
func (s *Server) UpdateStack(ctx context.Context, req *musterv1.UpdateStackRequest) (*musterv1.UpdateStackResponse, error) {
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the stack that the new content was decided on")
	}
	o, err := s.findStack(ctx, req.Stack)
	if err != nil {
		return nil, err
	}
	if err := s.validate.Stack(req.Spec, req.Message, s.executors()); err != nil {
		return nil, err
	}
	if req.Spec.Name != o.Name() {
		return nil, validate.Field("spec.name", "cannot be changed: it is %q; create another stack", o.Name())
	}
	current, err := s.stackContent(ctx, o.ID, o.Record.Revisions[0])
	if err != nil {
		return nil, err
	}
	next, err := newContent(req.Spec, current.DigestKey)
	if err != nil {
		return nil, s.Fail("encode stack", err)
	}
	var m *musterv1.Stack
	update := func(ctx context.Context, keep func(tx *store.Tx) (sealedData, error)) (err error) {
		m, err = s.stacks.update(ctx, o.ID, &req.Version, func(tx *store.Tx, _ string, e store.Entry[*recordv1.Stack]) (*recordv1.Stack, error) {
			if e.Value.RemovingAt != 0 {
				return nil, removing(e.Value)
			}
			if bytes.Equal(e.Value.Revisions[0].ContentDigest, next.digest) {
				return nil, backend.ErrNoChange
			}
			kept, err := keep(tx)
			if err != nil {
				return nil, err
			}
			return withRevision(e.Value, req, next, kept, backend.Caller(ctx)), nil
		})
		return err
	}
	if bytes.Equal(o.Record.Revisions[0].ContentDigest, next.digest) && o.Version == req.Version {
		// Nothing is written, unless the stack has changed meanwhile: then it is stale.
		err = update(ctx, func(*store.Tx) (sealedData, error) {
			return sealedData{}, backend.Stale("stack", o.Name(), req.Version, o.Version)
		})
	} else {
		err = s.withSealed(ctx, s.contents, seal.StackUse(o.ID), next.encoded, update)
	}
	return &musterv1.UpdateStackResponse{Stack: m}, err
}

// withRevision returns a stack with a further revision, and without those that are too many.
func withRevision(old *recordv1.Stack, req *musterv1.UpdateStackRequest, c content, kept sealedData, by string) *recordv1.Stack {
	next := proto.CloneOf(old)
	now := max(time.Now().UnixMilli(), old.UpdatedAt)
	newest := c.revision(kept, old.Revisions[0].Number+1, now, by, req.Message)
	next.Revisions = append([]*recordv1.StackRevision{newest}, next.Revisions[:min(len(next.Revisions), maxRevisions-1)]...)
	next.Labels, next.UpdatedAt = maps.Clone(req.Spec.Labels), now
	return next
}

// removing refuses a change of a stack that is being removed.
func removing(r *recordv1.Stack) error {
	by := ""
	if r.RemovingBy != "" {
		by = " by " + r.RemovingBy
	}
	return status.Errorf(codes.FailedPrecondition, "stack %q is being removed since %s%s: wait until it is gone, or finish its removal (muster stack rm %s)",
		r.Name, time.UnixMilli(r.RemovingAt).UTC().Format(time.RFC3339), by, r.Name)
}

// checkStack refuses a new object of a stack that is being removed. It reads the stack's
// record, so that the object and the end of the removal cannot both succeed.
func (s *Server) checkStack(tx *store.Tx, labels map[string]string) error {
	name := labels[musterv1.StackLabel]
	if name == "" {
		return nil
	}
	id, _, ok := s.stacks.findRecord(tx, name)
	if !ok {
		return nil
	}
	if e, _ := s.Tables.Stacks.Get(tx, id); e.Value.GetName() == name && e.Value.RemovingAt != 0 {
		return removing(e.Value)
	}
	return nil
}

// RemoveStack removes a stack that has no objects, or marks it as being removed.
func (s *Server) RemoveStack(ctx context.Context, req *musterv1.RemoveStackRequest) (*musterv1.RemoveStackResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	var left uint64
	_, err := s.stacks.edit(ctx, "remove", req.Stack, func(tx *store.Tx, id string) error {
		e, ok := s.Tables.Stacks.Get(tx, id)
		if !ok {
			return backend.NotFound("stack", id)
		}
		if left = s.stackObjects(tx, e.Value.Name); left == 0 {
			s.Tables.Names.Delete(tx, state.NameKey("stack", e.Value.Name))
			s.Tables.Stacks.Delete(tx, id)
			return nil
		}
		if e.Value.RemovingAt != 0 {
			return backend.ErrNoChange
		}
		next := proto.CloneOf(e.Value)
		next.UpdatedAt = max(time.Now().UnixMilli(), e.Value.UpdatedAt)
		next.RemovingAt, next.RemovingBy = next.UpdatedAt, backend.Caller(ctx)
		s.Tables.Stacks.Put(tx, id, next)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.RemoveStackResponse{Objects: left}, nil
}

// stackObjects counts the objects that have a stack's label.
func (s *Server) stackObjects(tx *store.Tx, name string) (n uint64) {
	count := func(labels map[string]string) {
		if labels[musterv1.StackLabel] == name {
			n++
		}
	}
	for e := range s.Tables.Services.Scan(tx, "") {
		count(e.Value.GetSpec().GetLabels())
	}
	for e := range s.Tables.Networks.Scan(tx, "") {
		count(e.Value.GetSpec().GetLabels())
	}
	for e := range s.Tables.Configs.Scan(tx, "") {
		count(e.Value.GetSpec().GetLabels())
	}
	for e := range s.Tables.Secrets.Scan(tx, "") {
		count(e.Value.GetSpec().GetLabels())
	}
	return n
}
