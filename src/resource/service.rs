//! Glue from the generated gRPC services to the collections: a macro implements every method of a service.
//!
//! ```text
//! service! {
//!     /// What it is.
//!     storage::NullVolumeService {
//!         serves { null_volumes: NullVolume[flat] as NullVolumes }
//!         beside {}
//!     }
//! }
//! ```
//!
//! `storage` is the module of the package in [`api`](crate::api). `serves` lists the kinds that are implemented,
//! each with its [`Kind`](super::Kind) and the shape of its requests: `flat` (no `parent`), `listed` (only List
//! has `parent`), `nested` (Create and List have `parent`) or `own(FUNCTION)` (nested, created by a function that takes
//! the whole request). `holds` (optional) lists further members of the service, and `beside` the methods other than the
//! six verbs, as in the generated trait.

/// Creates an object by the fields of a request that depend on its shape.
macro_rules! create {
    (own($create:path), $collection:expr, $call:ident, $request:ident, $id:ident, $object:ident) => {
        $create(&$collection, $call, $request)
    };
    (nested, $collection:expr, $call:ident, $request:ident, $id:ident, $object:ident) => {
        $collection.create(
            $call,
            $crate::resource::Create {
                parent: $request.parent,
                id: $request.$id,
                object: $request.$object,
            },
        )
    };
    ($flat:ident, $collection:expr, $call:ident, $request:ident, $id:ident, $object:ident) => {
        $collection.create(
            $call,
            $crate::resource::Create {
                parent: String::new(),
                id: $request.$id,
                object: $request.$object,
            },
        )
    };
}

/// Reads the fields of a List request that depend on its shape.
macro_rules! list_request {
    (flat, $request:ident, $scope:ident) => {
        $crate::resource::List {
            parent: None,
            page_size: $request.page_size,
            page_token: $request.page_token,
            scope: $scope,
        }
    };
    ($parent:ident, $request:ident, $scope:ident) => {
        $crate::resource::List {
            parent: Some($request.parent),
            page_size: $request.page_size,
            page_token: $request.page_token,
            scope: $scope,
        }
    };
}

/// Implements one generated service; see the module documentation.
macro_rules! service {
    (
        $(#[$doc:meta])*
        $api:ident::$Service:ident {
            serves { $($field:ident: $Kind:ident[$shape:ident $(($create:path))?] as $Implementation:ty),* $(,)? }
            $(holds { $($held:ident: $Held:ty),* $(,)? })?
            beside { $($beside:tt)* }
        }
    ) => {
        pastey::paste! {
            $(#[$doc])*
            #[derive(Clone)]
            pub struct $Service {
                $(
                    #[doc = concat!("Its ", stringify!($Kind), " resources.")]
                    pub $field: std::sync::Arc<$crate::resource::Collection<$Implementation>>,
                )*
                $($(
                    #[doc = concat!("What its other methods need: ", stringify!($held), ".")]
                    pub $held: $Held,
                )*)?
            }

            impl $Service {
                /// Creates the tower service that serves it.
                pub fn server(
                    self,
                ) -> $crate::api::$api::[<$Service:snake _server>]::[<$Service Server>]<Self> {
                    $crate::api::$api::[<$Service:snake _server>]::[<$Service Server>]::new(self)
                }

                /// Returns the collections of its kinds.
                pub(crate) fn records(
                    &self,
                ) -> Vec<std::sync::Arc<dyn $crate::resource::Records>> {
                    vec![$(std::sync::Arc::clone(&self.$field) as _),*]
                }
            }

            $($crate::resource::service::object!($api, $Kind);)*

            #[tonic::async_trait]
            impl $crate::api::$api::[<$Service:snake _server>]::$Service for $Service {
                $(
                    async fn [<create_ $Kind:snake>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<Create $Kind Request>]>,
                    ) -> Result<tonic::Response<$crate::api::$api::$Kind>, tonic::Status> {
                        let call = $crate::resource::CallContext::of(request.metadata());
                        let request = request.into_inner();
                        let created = $crate::resource::service::create!(
                            $shape $(($create))?, self.$field, call, request,
                            [<$Kind:snake _id>], [<$Kind:snake>]
                        );
                        Ok(tonic::Response::new(created.await?))
                    }

                    async fn [<update_ $Kind:snake>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<Update $Kind Request>]>,
                    ) -> Result<tonic::Response<$crate::api::$api::$Kind>, tonic::Status> {
                        let call = $crate::resource::CallContext::of(request.metadata());
                        let request = request.into_inner();
                        let request = $crate::resource::Update {
                            object: request.[<$Kind:snake>],
                            mask: request.update_mask.map(|mask| mask.paths),
                            allow_missing: request.allow_missing,
                        };
                        Ok(tonic::Response::new(self.$field.update(call, request).await?))
                    }

                    async fn [<delete_ $Kind:snake>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<Delete $Kind Request>]>,
                    ) -> Result<tonic::Response<()>, tonic::Status> {
                        let call = $crate::resource::CallContext::of(request.metadata());
                        let request = request.into_inner();
                        let request = $crate::resource::Delete {
                            name: request.name,
                            allow_missing: request.allow_missing,
                        };
                        Ok(tonic::Response::new(self.$field.delete(call, &request).await?))
                    }

                    async fn [<get_ $Kind:snake>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<Get $Kind Request>]>,
                    ) -> Result<tonic::Response<$crate::api::$api::$Kind>, tonic::Status> {
                        Ok(tonic::Response::new(self.$field.get(&request.get_ref().name)?))
                    }

                    async fn [<list_ $Kind:snake s>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<List $Kind sRequest>]>,
                    ) -> Result<
                        tonic::Response<$crate::api::$api::[<List $Kind sResponse>]>,
                        tonic::Status,
                    > {
                        let scope = $crate::resource::Scope::of(request.extensions());
                        let request = request.into_inner();
                        let request =
                            $crate::resource::service::list_request!($shape, request, scope);
                        let page = self.$field.list(&request)?;
                        Ok(tonic::Response::new($crate::api::$api::[<List $Kind sResponse>] {
                            [<$Kind:snake s>]: page.items,
                            next_page_token: page.next_page_token,
                        }))
                    }

                    async fn [<stats_ $Kind:snake>](
                        &self,
                        request: tonic::Request<$crate::api::$api::[<Stats $Kind Request>]>,
                    ) -> Result<
                        tonic::Response<$crate::api::$api::[<Stats $Kind Response>]>,
                        tonic::Status,
                    > {
                        let stats = self.$field.stats(&request.get_ref().name).await?;
                        Ok(tonic::Response::new($crate::api::$api::[<Stats $Kind Response>] {
                            stats: Some(stats),
                        }))
                    }
                )*
                $($beside)*
            }
        }
    };
}

/// Declares the services of the API, from which all lists of kinds and of services follow.
macro_rules! services {
    (
        $(#[$doc:meta])*
        $Services:ident {
            serves { $($field:ident: $Service:ident),* $(,)? }
            holds { $($held:ident: $Held:ty),* $(,)? }
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $Services {
            $(
                #[doc = concat!("See [`", stringify!($Service), "`].")]
                pub $field: $Service,
            )*
            $($held: $Held,)*
        }

        impl $Services {
            /// Returns the collections of all kinds.
            fn records(&self) -> Vec<std::sync::Arc<dyn $crate::resource::Records>> {
                [$(self.$field.records()),*].into_iter().flatten().collect()
            }

            /// Adds every service to the routes, and its name to the names.
            fn add_to(
                &self,
                mut routes: tonic::service::Routes,
                names: &mut Vec<&'static str>,
            ) -> tonic::service::Routes {
                $(
                    let service = self.$field.clone().server();
                    names.push($crate::resource::service::name_of(&service));
                    routes = routes.add_service(service);
                )*
                routes
            }
        }
    };
}

/// Returns the name of a service in its package.
pub(crate) fn name_of<S: tonic::server::NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Implements `Object` for a message of the API.
macro_rules! object {
    ($api:ident, $Kind:ident) => {
        impl $crate::resource::Object for $crate::api::$api::$Kind {
            fn name(&self) -> &str {
                &self.name
            }

            fn set_name(&mut self, name: String) {
                self.name = name;
            }
        }
    };
}

pub(crate) use {create, list_request, object, service, services};
