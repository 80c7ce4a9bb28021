package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"

	"github.com/google/jsonschema-go/jsonschema"
)

// openRPC is the part of an OpenRPC 1.3 document that we fill.
type openRPC struct {
	OpenRPC    string            `json:"openrpc"`
	Info       openInfo          `json:"info"`
	Methods    []openMethod      `json:"methods"`
	Components map[string]schema `json:"components"`
}

type schema map[string]*jsonschema.Schema

type openInfo struct {
	Title       string `json:"title"`
	Description string `json:"description"`
	Version     string `json:"version"`
}

type openMethod struct {
	Name      string      `json:"name"`
	Summary   string      `json:"summary"`
	Structure string      `json:"paramStructure"`
	Params    []openParam `json:"params"`
	Result    openParam   `json:"result"`
}

type openParam struct {
	Name        string             `json:"name"`
	Description string             `json:"description,omitempty"`
	Required    bool               `json:"required,omitempty"`
	Schema      *jsonschema.Schema `json:"schema"`
}

// Schema is the API described as OpenRPC, made from the Go types and so never out of date.
func (s *Server) Schema() ([]byte, error) {
	doc := openRPC{OpenRPC: "1.3.2",
		Info: openInfo{Title: "sotto local API", Version: fmt.Sprintf("%d", APIVersion),
			Description: "JSON-RPC 2.0: POST /v1/rpc. Events: GET /v1/events (text/event-stream, or JSON lines with Accept: application/jsonl), resumed by Last-Event-ID, ?after= or ?cursor=."},
		Components: map[string]schema{"schemas": {}}}
	for _, m := range s.order {
		om, err := describe(m)
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", m.name, err)
		}
		doc.Methods = append(doc.Methods, om)
	}
	for name, t := range map[string]reflect.Type{"Event": reflect.TypeFor[Event](), "Error": reflect.TypeFor[Error]()} {
		js, err := open(t)
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", name, err)
		}
		doc.Components["schemas"][name] = js
	}
	return json.MarshalIndent(doc, "", " ")
}

func describe(m method) (openMethod, error) {
	result, err := open(m.result)
	if err != nil {
		return openMethod{}, err
	}
	params, err := jsonschema.ForType(m.params, nil)
	if err != nil {
		return openMethod{}, err
	}
	om := openMethod{Name: m.name, Summary: m.summary, Structure: "by-name", Params: []openParam{},
		Result: openParam{Name: m.result.Name(), Schema: result}}
	required := map[string]bool{}
	for _, name := range params.Required {
		required[name] = true
	}
	for _, name := range params.PropertyOrder {
		p := params.Properties[name]
		om.Params = append(om.Params, openParam{Name: name, Description: p.Description, Required: required[name], Schema: p})
	}
	return om, nil
}

// open describes a type whose fields may be added to: a reader must accept ones it does not know.
func open(t reflect.Type) (*jsonschema.Schema, error) {
	js, err := jsonschema.ForType(t, nil)
	if err != nil {
		return nil, err
	}
	loosen(js)
	return js, nil
}

func loosen(js *jsonschema.Schema) {
	if js == nil {
		return
	}
	if len(js.Properties) > 0 || js.Type == "object" {
		js.AdditionalProperties = nil
	}
	for _, p := range js.Properties {
		loosen(p)
	}
	loosen(js.Items)
}

func (s *Server) schema(w http.ResponseWriter, _ *http.Request) {
	doc, err := s.Schema()
	if err != nil {
		refuse(w, http.StatusInternalServerError, asError(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(doc)
}
