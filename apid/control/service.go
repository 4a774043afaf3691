package control

import (
	"context"
	"time"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/defaults"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func (s *Server) serviceKind() *kind[*recordv1.Service, *objects.Service, *musterv1.Service] {
	return &kind[*recordv1.Service, *objects.Service, *musterv1.Service]{
		Backend: s.Backend, name: "service", table: s.Tables.Services,
		find: (*objects.Reader).FindService, ascend: (*objects.Reader).Services, message: (*objects.Reader).ServiceMessage,
		recordName: func(r *recordv1.Service) string { return r.GetSpec().GetName() },
	}
}

// CreateService creates a service.
func (s *Server) CreateService(ctx context.Context, req *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.validate.Service(req.Spec, s.executors()); err != nil {
		return nil, err
	}
	id, err := s.createService(ctx, req.Spec, time.Now())
	if err != nil {
		return nil, err
	}
	m, err := s.services.shown(ctx, id)
	return &musterv1.CreateServiceResponse{Service: m}, err
}

// GetService returns one service.
func (s *Server) GetService(ctx context.Context, req *musterv1.GetServiceRequest) (*musterv1.GetServiceResponse, error) {
	m, err := s.services.get(ctx, req.Service)
	if err != nil {
		return nil, err
	}
	if req.InsertDefaults {
		m.Spec = defaults.Service(m.Spec)
	}
	return &musterv1.GetServiceResponse{Service: m}, nil
}

// ListServices returns a page of services.
func (s *Server) ListServices(ctx context.Context, req *musterv1.ListServicesRequest) (*musterv1.ListServicesResponse, error) {
	services, next, err := s.services.list(ctx, req, func(*objects.Reader) selection[*objects.Service] {
		return selection[*objects.Service]{keep: func(o *objects.Service) bool { return oneOf(req.Modes, serviceMode(o.Record.GetSpec())) }}
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.ListServicesResponse{Services: services, NextPageToken: next}, nil
}

// UpdateService replaces the spec of a service.
func (s *Server) UpdateService(ctx context.Context, req *musterv1.UpdateServiceRequest) (*musterv1.UpdateServiceResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if req.Version == 0 {
		return nil, validate.Field("version", "is required: meta.version of the service that the new spec was decided on")
	}
	if err := s.validate.Service(req.Spec, s.executors()); err != nil {
		return nil, err
	}
	m, err := s.updateService(ctx, req.Service, &req.Version, func(stored *storedService) error { return stored.replace(req.Spec) })
	return &musterv1.UpdateServiceResponse{Service: m}, err
}

// ScaleService sets the number of replicas.
func (s *Server) ScaleService(ctx context.Context, req *musterv1.ScaleServiceRequest) (*musterv1.ScaleServiceResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	if err := validate.Replicas("replicas", req.Replicas); err != nil {
		return nil, err
	}
	m, err := s.updateService(ctx, req.Service, nil, func(stored *storedService) error { return stored.scale(req.Replicas) })
	return &musterv1.ScaleServiceResponse{Service: m}, err
}

// RollbackService returns a service to its previous spec.
func (s *Server) RollbackService(ctx context.Context, req *musterv1.RollbackServiceRequest) (*musterv1.RollbackServiceResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	var version *uint64
	if req.Version != 0 {
		version = &req.Version
	}
	m, err := s.updateService(ctx, req.Service, version, (*storedService).rollBack)
	return &musterv1.RollbackServiceResponse{Service: m}, err
}

// RemoveService removes a service and its name. Its tasks follow: their own owner
// removes them.
func (s *Server) RemoveService(ctx context.Context, req *musterv1.RemoveServiceRequest) (*musterv1.RemoveServiceResponse, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	err := s.services.remove(ctx, req.Service, func(tx *store.Tx, id string, e store.Entry[*recordv1.Service]) error {
		// Its tasks still exist for a while, and are called by its name.
		s.Tables.Names.Put(tx, state.RemovedNameKey(id), &recordv1.Name{
			Name: e.Value.GetSpec().GetName(), RemovedAt: time.Now().UnixMilli(), DependsOn: dependsOn(e.Value),
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &musterv1.RemoveServiceResponse{}, nil
}
