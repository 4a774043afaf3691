package rest_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/rest"
)

// accepting accepts every object.
type accepting struct {
	musterv1.UnimplementedControlServiceServer
}

func (accepting) CreateService(context.Context, *musterv1.CreateServiceRequest) (*musterv1.CreateServiceResponse, error) {
	return &musterv1.CreateServiceResponse{}, nil
}

func (accepting) CreateConfig(context.Context, *musterv1.CreateConfigRequest) (*musterv1.CreateConfigResponse, error) {
	return &musterv1.CreateConfigResponse{}, nil
}

// BenchmarkBody measures what REST adds to a call that has a body.
func BenchmarkBody(b *testing.B) {
	env := make([]string, 100)
	for i := range env {
		env[i] = `"NAME_` + strconv.Itoa(i) + `=value"`
	}
	for name, call := range map[string]struct{ path, body string }{
		"service":                         {"/v1/services", `{"name":"web","replicated":{"replicas":3},"task":{"container":{"image":"nginx","env":["A=b"],"stopGracePeriod":"10s"}},"labels":{"a":"b"}}`},
		"service with a long environment": {"/v1/services", `{"name":"web","task":{"container":{"image":"nginx","env":[` + strings.Join(env, ",") + `]}}}`},
		"config of 1000 KiB":              {"/v1/configs", `{"name":"app","data":"` + base64.StdEncoding.EncodeToString(make([]byte, 1000<<10)) + `"}`},
	} {
		b.Run(name, func(b *testing.B) {
			handler, err := rest.New(accepting{}, func(context.Context) error { return nil }, nil, nil, zap.NewNop())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(call.body)))
			for b.Loop() {
				r := httptest.NewRequest(http.MethodPost, call.path, strings.NewReader(call.body))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				if handler.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
		})
	}
}
