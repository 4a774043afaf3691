package openapi_test

import (
	"encoding/json"
	"testing"

	"github.com/musterhq/muster/api/openapi"
)

// TestDocumentIsOfTheControlAPI holds the document to what users call: the
// services between Muster's own parts are no part of it.
func TestDocumentIsOfTheControlAPI(t *testing.T) {
	var document struct {
		Info struct{ Title, Version string }
		Tags []struct{ Name string }
	}
	if err := json.Unmarshal(openapi.Document(), &document); err != nil {
		t.Fatal(err)
	}
	if document.Info.Title != "Muster" || document.Info.Version != "v1" {
		t.Errorf("the document says of itself: %+v", document.Info)
	}
	if len(document.Tags) != 1 || document.Tags[0].Name != "ControlService" {
		t.Errorf("the document lists the services %v; want ControlService alone", document.Tags)
	}
}
